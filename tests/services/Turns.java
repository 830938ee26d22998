// One thread that serves two connections in turn, and calls on: java Turns.java PORT NEXT_PORT
//
// GET PATH calls PATH of the next service. Each answer is one write of 4,000 bytes and a head.
import java.io.IOException;
import java.io.InputStream;
import java.net.HttpURLConnection;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.URI;

public class Turns {
	public static void main(String[] arguments) throws IOException {
		byte[] answer = ("HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n" + "x".repeat(4000)).getBytes();
		try (ServerSocket listener = new ServerSocket(Integer.parseInt(arguments[0]))) {
			Socket[] clients = { listener.accept(), listener.accept() };
			for (int turn = 0; ; turn++) {
				Socket client = clients[turn % 2];
				String path = request(client.getInputStream());
				if (path == null)
					return;
				call("http://127.0.0.1:" + arguments[1] + path);
				client.getOutputStream().write(answer);
			}
		}
	}

	/** The path of the next request, null at the end. */
	static String request(InputStream in) throws IOException {
		byte[] data = new byte[4096];
		int size = 0, read;
		while ((read = in.read(data, size, data.length - size)) > 0) {
			size += read;
			String text = new String(data, 0, size);
			if (text.endsWith("\r\n\r\n"))
				return text.split(" ")[1];
		}
		return null;
	}

	static void call(String url) throws IOException {
		HttpURLConnection call = (HttpURLConnection) URI.create(url).toURL().openConnection();
		try (InputStream in = call.getInputStream()) {
			in.readAllBytes();
		}
	}
}
