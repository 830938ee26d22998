// Spring MVC on Tomcat. CLIENT says what makes the calls: a RestClient, a RestTemplate.
package parents;

import java.io.IOException;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.function.UnaryOperator;

import jakarta.servlet.http.HttpServletResponse;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.autoconfigure.condition.ConditionalOnProperty;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.scheduling.annotation.EnableScheduling;
import org.springframework.scheduling.annotation.Scheduled;
import org.springframework.stereotype.Component;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestBody;
import org.springframework.web.bind.annotation.RequestParam;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.client.RestClient;
import org.springframework.web.client.RestTemplate;
import redis.clients.jedis.JedisPool;
import redis.clients.jedis.JedisPoolConfig;

@SpringBootApplication
public class Mvc {
	public static void main(String[] arguments) {
		SpringApplication.run(Mvc.class, arguments);
	}

	@Bean
	@ConditionalOnProperty(name = "CLIENT", havingValue = "restclient")
	UnaryOperator<String> restClient(RestClient.Builder builder, @Value("${BACKEND}") String backend) {
		RestClient client = builder.baseUrl(backend).build();
		return path -> client.get().uri(path).retrieve().body(String.class);
	}

	@Bean
	@ConditionalOnProperty(name = "CLIENT", havingValue = "resttemplate")
	UnaryOperator<String> restTemplate(@Value("${BACKEND}") String backend) {
		RestTemplate client = new RestTemplate();
		return path -> client.getForObject(backend + path, String.class);
	}

	@Bean
	JedisPool redis(@Value("${REDIS_PORT}") int port) {
		JedisPoolConfig config = new JedisPoolConfig();
		config.setMaxTotal(4);
		return new JedisPool(config, "127.0.0.1", port);
	}

	@RestController
	static class Controller {
		private final UnaryOperator<String> client;
		private final JedisPool redis;
		private final ExecutorService pool = Executors.newFixedThreadPool(4);

		Controller(UnaryOperator<String> client, JedisPool redis) {
			this.client = client;
			this.redis = redis;
		}

		@GetMapping("/at-once")
		String atOnce(@RequestParam long id) {
			return client.apply("/call?id=" + id);
		}

		@GetMapping("/sleep")
		String sleep(@RequestParam long id) throws InterruptedException {
			Thread.sleep(10);
			return client.apply("/call?id=" + id);
		}

		@GetMapping("/database")
		String database(@RequestParam long id) {
			try (var connection = redis.getResource()) {
				connection.get("visits");
			}
			return client.apply("/call?id=" + id);
		}

		@GetMapping("/two")
		String two(@RequestParam long id) {
			var calls = List.of("&n=1", "&n=2").stream()
				.map(n -> CompletableFuture.supplyAsync(() -> client.apply("/call?id=" + id + n)))
				.toList();
			return calls.get(0).join() + calls.get(1).join();
		}

		@GetMapping("/pool")
		String pool(@RequestParam long id) throws Exception {
			return pool.submit(() -> client.apply("/call?id=" + id)).get();
		}

		@GetMapping("/after")
		void after(@RequestParam long id, HttpServletResponse response) throws IOException {
			response.setContentLength(2);
			response.getWriter().write("ok");
			response.flushBuffer();
			CompletableFuture.delayedExecutor(id % 11, TimeUnit.MILLISECONDS)
				.execute(() -> client.apply("/call?id=" + id));
		}

		@PostMapping("/body")
		String body(@RequestParam long id, @RequestBody byte[] body) {
			return client.apply("/call?id=" + id);
		}
	}

	@Configuration
	@EnableScheduling
	@ConditionalOnProperty("POLLER")
	static class Scheduling {
	}

	@Component
	@ConditionalOnProperty("POLLER")
	static class Poller {
		private final UnaryOperator<String> client;
		private long polls;

		Poller(UnaryOperator<String> client) {
			this.client = client;
		}

		@Scheduled(fixedRate = 20)
		void poll() {
			client.apply("/poll?id=" + polls++);
		}
	}
}
