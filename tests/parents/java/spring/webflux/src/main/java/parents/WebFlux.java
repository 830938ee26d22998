// Spring WebFlux on Reactor Netty, with WebClient.
package parents;

import java.time.Duration;

import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.context.event.ApplicationReadyEvent;
import org.springframework.context.event.EventListener;
import org.springframework.data.redis.core.ReactiveStringRedisTemplate;
import org.springframework.http.server.reactive.ServerHttpResponse;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestBody;
import org.springframework.web.bind.annotation.RequestParam;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.reactive.function.client.WebClient;
import reactor.core.publisher.Flux;
import reactor.core.publisher.Mono;
import reactor.core.scheduler.Scheduler;
import reactor.core.scheduler.Schedulers;

@SpringBootApplication
public class WebFlux {
	public static void main(String[] arguments) {
		SpringApplication.run(WebFlux.class, arguments);
	}

	@RestController
	static class Controller {
		private final WebClient client;
		private final ReactiveStringRedisTemplate redis;
		private final boolean polls;
		private final Scheduler pool = Schedulers.newBoundedElastic(4, 100_000, "pool");

		Controller(WebClient.Builder builder, ReactiveStringRedisTemplate redis,
				@Value("${BACKEND}") String backend, @Value("${POLLER:}") String poller) {
			this.client = builder.baseUrl(backend).build();
			this.redis = redis;
			this.polls = !poller.isEmpty();
		}

		private Mono<String> call(String path) {
			return client.get().uri(path).retrieve().bodyToMono(String.class);
		}

		@GetMapping("/at-once")
		Mono<String> atOnce(@RequestParam long id) {
			return call("/call?id=" + id);
		}

		@GetMapping("/sleep")
		Mono<String> sleep(@RequestParam long id) {
			return Mono.delay(Duration.ofMillis(10)).then(call("/call?id=" + id));
		}

		@GetMapping("/database")
		Mono<String> database(@RequestParam long id) {
			return redis.opsForValue().get("visits").then(call("/call?id=" + id));
		}

		@GetMapping("/two")
		Mono<String> two(@RequestParam long id) {
			return Mono.zip(call("/call?id=" + id + "&n=1"), call("/call?id=" + id + "&n=2"))
				.map(both -> both.getT1() + both.getT2());
		}

		@GetMapping("/pool")
		Mono<String> pool(@RequestParam long id) {
			return Mono.fromCallable(() -> call("/call?id=" + id).block()).subscribeOn(pool);
		}

		@GetMapping("/after")
		Mono<Void> after(@RequestParam long id, ServerHttpResponse response) {
			response.getHeaders().setContentLength(2);
			var body = response.bufferFactory().wrap("ok".getBytes());
			return response.writeWith(Mono.just(body)).doOnSuccess(done ->
				Mono.delay(Duration.ofMillis(id % 11)).then(call("/call?id=" + id)).subscribe());
		}

		@PostMapping("/body")
		Mono<String> body(@RequestParam long id, @RequestBody byte[] body) {
			return call("/call?id=" + id);
		}

		@EventListener(ApplicationReadyEvent.class)
		void poll() {
			if (polls) {
				Flux.interval(Duration.ofMillis(20))
					.onBackpressureDrop()
					.flatMap(number -> call("/poll?id=" + number))
					.subscribe();
			}
		}
	}
}
