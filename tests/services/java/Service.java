// A Java service of the JDK alone that calls on: java Service PORT NEXT_PORT POOL
//
// POOL: "pool" (32 threads), "virtual" (a virtual thread for each request; Java 21), "shared" (the
// pool of "pool" also runs what requests hand over).
// GET /WAY/NUMBER calls /WAY/NUMBER of the next service:
//   now      at once, with HttpURLConnection
//   later    the same, after 0 to 20 ms
//   twice    the same two times, with a pause before each
//   socket   by a plain socket, after 0 to 20 ms
//   client   with one shared java.net.http.HttpClient, blocking
//   async    with its sendAsync
//   handed   supplyAsync on the pool of the server, which also answers
//   spawned  in a virtual thread that the handler starts and waits for
//   after    first answers, then calls
//   none     does not call
// Beside, one thread calls /poller/NUMBER each 20 ms when POLL is set. Knows nothing about traces.
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ThreadLocalRandom;

public class Service {
	static int next;
	static ExecutorService pool;
	static final HttpClient client =
		HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
	static volatile List<byte[]> garbage = new ArrayList<>();

	public static void main(String[] arguments) throws Exception {
		next = Integer.parseInt(arguments[1]);
		pool = arguments[2].equals("virtual") ? virtualThreads() : Executors.newFixedThreadPool(32);
		HttpServer server = HttpServer.create(
			new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0])), 256);
		server.setExecutor(pool);
		server.createContext("/", Service::handle);
		server.start();
		if (System.getenv("POLL") != null)
			new Thread(Service::poll, "poller").start();
		for (int i = 0; System.getenv("CHURN") != null && i < Integer.parseInt(System.getenv("CHURN")); i++)
			new Thread(Service::churn, "churn").start();
	}

	static ExecutorService virtualThreads() throws Exception {
		return (ExecutorService) Executors.class.getMethod("newVirtualThreadPerTaskExecutor").invoke(null);
	}

	static void handle(HttpExchange exchange) throws IOException {
		String path = exchange.getRequestURI().getPath();
		try {
			switch (path.split("/")[1]) {
			case "now" -> call(path);
			case "later" -> { pause(); call(path); }
			case "twice" -> { pause(); call(path); pause(); call(path); }
			case "socket" -> { pause(); bySocket(path); }
			case "client" -> client.send(request(path), HttpResponse.BodyHandlers.ofString());
			case "async" -> {
				client.sendAsync(request(path), HttpResponse.BodyHandlers.ofString())
					.thenAccept(answer -> end(exchange));
				return;
			}
			case "handed" -> {
				CompletableFuture.supplyAsync(() -> { pause(); call(path); return 1; }, pool)
					.thenAccept(done -> end(exchange));
				return;
			}
			case "spawned" -> {
				ExecutorService tasks = virtualThreads();
				tasks.submit(() -> call(path)).get();
				tasks.shutdown();
			}
			case "after" -> { end(exchange); call(path); return; }
			case "none" -> { }
			default -> throw new IOException(path);
			}
		} catch (Exception error) {
			error.printStackTrace();
		}
		end(exchange);
	}

	static void end(HttpExchange exchange) {
		try {
			byte[] body = "done".getBytes();
			exchange.sendResponseHeaders(200, body.length);
			try (OutputStream out = exchange.getResponseBody()) {
				out.write(body);
			}
		} catch (IOException error) {
			error.printStackTrace();
		}
	}

	static void pause() {
		try {
			Thread.sleep(ThreadLocalRandom.current().nextInt(20));
		} catch (InterruptedException error) {
			throw new RuntimeException(error);
		}
	}

	static HttpRequest request(String path) {
		return HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + next + path)).build();
	}

	static void call(String path) {
		try {
			HttpURLConnection call = (HttpURLConnection)
				URI.create("http://127.0.0.1:" + next + path).toURL().openConnection();
			try (InputStream in = call.getInputStream()) {
				in.readAllBytes();
			}
		} catch (IOException error) {
			throw new RuntimeException(error);
		}
	}

	static void bySocket(String path) throws IOException {
		try (Socket socket = new Socket("127.0.0.1", next)) {
			socket.getOutputStream().write(
				("GET " + path + " HTTP/1.1\r\nHost: next\r\nConnection: close\r\n\r\n").getBytes());
			InputStream in = socket.getInputStream();
			byte[] answer = new byte[4096];
			int size = 0, read;
			while ((read = in.read(answer, size, answer.length - size)) > 0) {
				size += read;
				if (new String(answer, 0, size).endsWith("ok"))
					return;
			}
		}
	}

	static void poll() {
		for (int number = 0; ; number++) {
			try {
				Thread.sleep(20);
				call("/poller/" + number);
			} catch (InterruptedException | RuntimeException error) {
				return;
			}
		}
	}

	/** Makes objects that live for a while: the collector moves what is left. */
	static void churn() {
		List<byte[]> kept = new ArrayList<>();
		ThreadLocalRandom random = ThreadLocalRandom.current();
		while (true) {
			byte[] piece = new byte[random.nextInt(1, 4096)];
			if (kept.size() < 20000)
				kept.add(piece);
			else
				kept.set(random.nextInt(kept.size()), piece);
		}
	}
}
