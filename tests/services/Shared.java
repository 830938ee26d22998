// A server of the JDK whose threads also do the calls of its handlers (supplyAsync on the same pool): PORT NEXT_PORT.
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.URL;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

public class Shared {
    static byte[] call(int port, String path) {
        try {
            var connection = (HttpURLConnection) new URL("http://127.0.0.1:" + port + path).openConnection();
            try (InputStream body = connection.getInputStream()) {
                return body.readAllBytes();
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    static void answer(HttpExchange exchange, byte[] body) {
        try (exchange) {
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    public static void main(String[] arguments) throws IOException {
        int port = Integer.parseInt(arguments[0]);
        int onward = Integer.parseInt(arguments[1]);
        ExecutorService pool = Executors.newFixedThreadPool(16);
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 512);
        server.setExecutor(pool);
        server.createContext("/", exchange -> {
            String path = exchange.getRequestURI().toString();
            CompletableFuture.supplyAsync(() -> call(onward, path), pool)
                .thenAccept(body -> answer(exchange, body));
        });
        server.start();
    }
}
