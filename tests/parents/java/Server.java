// The JDK's own HttpServer: java Server.java EXECUTOR CLIENT
//
// EXECUTOR says who serves: `threads` (a fixed pool), `virtual` (a virtual thread for each request), or `shared` (a fixed
// pool that serves, and on which the handlers run their calls with supplyAsync, answering when these are done).
// CLIENT says who calls: `client` (one shared java.net.http.HttpClient, blocking) or `url` (HttpURLConnection).
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;

public class Server {
	private static final String BACKEND = System.getenv("BACKEND");
	private static final HttpClient CLIENT = HttpClient.newHttpClient();
	private static final ExecutorService POOL = Executors.newFixedThreadPool(4);

	interface Handler {
		String handle(long id, HttpExchange exchange) throws Exception;
	}

	private static Function<String, String> client;
	private static Redis redis;

	public static void main(String[] arguments) throws Exception {
		boolean shared = arguments[0].equals("shared");
		ExecutorService executor = arguments[0].equals("virtual")
			? (ExecutorService) Executors.class.getMethod("newVirtualThreadPerTaskExecutor").invoke(null)
			: Executors.newFixedThreadPool(16);
		client = arguments[1].equals("url") ? Server::callWithUrlConnection : Server::callWithClient;
		redis = new Redis(Integer.parseInt(System.getenv("REDIS_PORT")), 4);

		HttpServer server = HttpServer.create(
			new InetSocketAddress("127.0.0.1", Integer.parseInt(System.getenv("PORT"))), 256);
		server.setExecutor(executor);
		if (shared) {
			server.createContext("/at-once", exchange -> answerLater(exchange, 0, executor));
			server.createContext("/sleep", exchange -> answerLater(exchange, 10, executor));
		} else {
			add(server, "/at-once", (id, exchange) -> client.apply("/call?id=" + id));
			add(server, "/sleep", (id, exchange) -> {
				Thread.sleep(10);
				return client.apply("/call?id=" + id);
			});
		}
		add(server, "/database", (id, exchange) -> {
			redis.get("visits");
			return client.apply("/call?id=" + id);
		});
		add(server, "/two", (id, exchange) -> {
			var first = CompletableFuture.supplyAsync(() -> client.apply("/call?id=" + id + "&n=1"));
			var second = CompletableFuture.supplyAsync(() -> client.apply("/call?id=" + id + "&n=2"));
			return first.join() + second.join();
		});
		add(server, "/pool", (id, exchange) -> POOL.submit(() -> client.apply("/call?id=" + id)).get());
		add(server, "/body", (id, exchange) -> {
			exchange.getRequestBody().readAllBytes();
			return client.apply("/call?id=" + id);
		});
		server.createContext("/after", exchange -> {
			answer(exchange, "ok");
			CompletableFuture.delayedExecutor(id(exchange) % 11, TimeUnit.MILLISECONDS)
				.execute(() -> client.apply("/call?id=" + id(exchange)));
		});
		if (!System.getenv().getOrDefault("POLLER", "").isEmpty()) {
			startPoller();
		}
		server.start();
	}

	private static void startPoller() {
		ScheduledExecutorService scheduler = Executors.newSingleThreadScheduledExecutor();
		long[] polls = {0};
		scheduler.scheduleAtFixedRate(
			() -> client.apply("/poll?id=" + polls[0]++), 0, 20, TimeUnit.MILLISECONDS);
	}

	private static void add(HttpServer server, String path, Handler handler) {
		server.createContext(path, exchange -> {
			try {
				answer(exchange, handler.handle(id(exchange), exchange));
			} catch (Exception error) {
				throw new IOException(error);
			}
		});
	}

	private static void answerLater(HttpExchange exchange, long milliseconds, ExecutorService executor) {
		CompletableFuture
			.supplyAsync(() -> {
				if (milliseconds > 0) {
					sleep(milliseconds);
				}
				return client.apply("/call?id=" + id(exchange));
			}, executor)
			.thenAccept(text -> {
				try {
					answer(exchange, text);
				} catch (IOException error) {
					throw new UncheckedIOException(error);
				}
			});
	}

	private static void sleep(long milliseconds) {
		try {
			Thread.sleep(milliseconds);
		} catch (InterruptedException error) {
			throw new IllegalStateException(error);
		}
	}

	private static long id(HttpExchange exchange) {
		return Long.parseLong(exchange.getRequestURI().getQuery().replaceFirst("id=", ""));
	}

	private static void answer(HttpExchange exchange, String text) throws IOException {
		byte[] bytes = text.getBytes();
		exchange.sendResponseHeaders(200, bytes.length);
		try (OutputStream body = exchange.getResponseBody()) {
			body.write(bytes);
		}
	}

	private static String callWithClient(String path) {
		try {
			HttpRequest request = HttpRequest.newBuilder(URI.create(BACKEND + path)).build();
			return CLIENT.send(request, HttpResponse.BodyHandlers.ofString()).body();
		} catch (IOException | InterruptedException error) {
			throw new IllegalStateException(error);
		}
	}

	private static String callWithUrlConnection(String path) {
		try {
			var connection = (HttpURLConnection) URI.create(BACKEND + path).toURL().openConnection();
			try (InputStream body = connection.getInputStream()) {
				return new String(body.readAllBytes());
			}
		} catch (IOException error) {
			throw new UncheckedIOException(error);
		}
	}

	/** Connections to Redis that all requests share, each used by one at a time. */
	private static final class Redis {
		private final BlockingQueue<Socket> free;

		Redis(int port, int size) throws IOException {
			this.free = new ArrayBlockingQueue<>(size);
			for (int count = 0; count < size; count++) {
				free.add(new Socket("127.0.0.1", port));
			}
		}

		/** The line that tells the value's length, "$-1" where there is none. */
		String get(String key) throws IOException, InterruptedException {
			Socket socket = free.take();
			try {
				socket.getOutputStream().write(("GET " + key + "\r\n").getBytes());
				var reader = new BufferedReader(new InputStreamReader(socket.getInputStream()));
				String length = reader.readLine();
				if (!length.equals("$-1")) {
					reader.readLine();
				}
				return length;
			} finally {
				free.add(socket);
			}
		}
	}
}
