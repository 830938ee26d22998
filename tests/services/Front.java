// A Java service that calls on: java Front.java PORT NEXT_PORT
//
// GET /url/SIZE/NUMBER calls the next service with HttpURLConnection,
// GET /client/SIZE/NUMBER with one shared java.net.http.HttpClient, blocking, and
// GET /async/SIZE/NUMBER with its sendAsync, which answers from the client's own threads.
// Both keep their connections. Knows nothing about traces.
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.concurrent.Executors;

public class Front {
	static String next;
	static final HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();

	public static void main(String[] arguments) throws IOException {
		next = "http://127.0.0.1:" + arguments[1];
		HttpServer server = HttpServer.create(
			new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0])), 256);
		server.setExecutor(Executors.newFixedThreadPool(32));
		server.createContext("/url/", Front::withUrlConnection);
		server.createContext("/client/", Front::withHttpClient);
		server.createContext("/async/", Front::withAsyncHttpClient);
		server.start();
	}

	/** The path without its first element. */
	static String onward(HttpExchange exchange) {
		String path = exchange.getRequestURI().toString();
		return next + path.substring(path.indexOf('/', 1));
	}

	static void withUrlConnection(HttpExchange exchange) throws IOException {
		HttpURLConnection call =
			(HttpURLConnection) URI.create(onward(exchange)).toURL().openConnection();
		answer(exchange, call.getResponseCode(), call.getHeaderField("X-Traceparents"),
			call.getContentLengthLong(), call.getInputStream());
	}

	static HttpRequest request(HttpExchange exchange) {
		return HttpRequest.newBuilder(URI.create(onward(exchange))).build();
	}

	static void withHttpClient(HttpExchange exchange) throws IOException {
		try {
			answer(exchange,
				client.send(request(exchange), HttpResponse.BodyHandlers.ofInputStream()));
		} catch (InterruptedException error) {
			throw new IOException(error);
		}
	}

	static void withAsyncHttpClient(HttpExchange exchange) {
		client.sendAsync(request(exchange), HttpResponse.BodyHandlers.ofInputStream())
			.thenAccept(response -> {
				try {
					answer(exchange, response);
				} catch (IOException error) {
					error.printStackTrace();
					exchange.close();
				}
			});
	}

	static void answer(HttpExchange exchange, HttpResponse<InputStream> response) throws IOException {
		answer(exchange, response.statusCode(),
			response.headers().firstValue("X-Traceparents").orElse("[]"),
			response.headers().firstValueAsLong("Content-Length").orElse(-1), response.body());
	}

	static void answer(HttpExchange exchange, int status, String traceparents, long length,
			InputStream body) throws IOException {
		exchange.getResponseHeaders().set("X-Traceparents", traceparents);
		exchange.sendResponseHeaders(status, length < 0 ? 0 : length);
		try (InputStream from = body; OutputStream to = exchange.getResponseBody()) {
			from.transferTo(to);
		}
	}
}
