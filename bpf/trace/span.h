/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* trace/span.h - an exchange ends: its duration, and the record of its span. */
#ifndef THROUGHLINE_TRACE_SPAN_H
#define THROUGHLINE_TRACE_SPAN_H

#include "trace/flow.h"
#include "trace/request.h"

#define TL_SERIES_MAX 1024 /* entries of tl_durations for each cgroup */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct tl_duration_key);
	__type(value, struct tl_duration);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_durations SEC(".maps");

/*
 * cgroup id -> how many entries of tl_durations it has. Servers choose statuses, and clients
 * methods: without a limit they could fill the map.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_series SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_spans SEC(".maps");

const __u64 tl_bounds_ns[TL_BUCKETS - 1] = {
	5000000,   10000000,  25000000,   50000000,   75000000,   100000000,  250000000,
	500000000, 750000000, 1000000000, 2500000000, 5000000000, 7500000000, 10000000000,
};

/* May the cgroup have one more entry in tl_durations? */
static __always_inline bool tl_series_left(__u64 cgroup_id)
{
	__u32 *series = bpf_map_lookup_elem(&tl_series, &cgroup_id);
	__u32 one = 1;

	if (!series) {
		bpf_map_update_elem(&tl_series, &cgroup_id, &one, BPF_NOEXIST);
		return true;
	}
	if (*series >= TL_SERIES_MAX)
		return false;
	__sync_fetch_and_add(series, 1);
	return true;
}

/* Adds one finished request to the duration histograms, sampled or not. */
static __always_inline void tl_measure(const struct tl_exchange *exchange, __u16 status,
				       __u64 duration)
{
	struct tl_duration_key key = {
		.cgroup_id = exchange->cgroup_id,
		.status = status,
		.kind = exchange->kind,
		.method = exchange->method,
		.http_minor = exchange->http_minor,
		.tls = exchange->flags & TL_EXCHANGE_TLS ? 1 : 0,
		.http_major = exchange->http_major,
		.grpc = exchange->flags & TL_EXCHANGE_GRPC ? 1 : 0,
	};
	struct tl_duration *value = bpf_map_lookup_elem(&tl_durations, &key);
	__u32 bucket = 0;
	__u32 i;

	if (!value) {
		if (tl_series_left(exchange->cgroup_id))
			tl_insert_zeros(&tl_durations, &key, BPF_NOEXIST);
		value = bpf_map_lookup_elem(&tl_durations, &key);
		if (!value) {
			tl_count(TL_FULL_DURATIONS);
			return;
		}
	}
	for (i = 0; i < TL_BUCKETS - 1; i++) {
		if (duration <= tl_bounds_ns[i])
			break;
		bucket = i + 1;
	}
	value->requests++;
	value->sum_ns += duration;
	if (bucket < TL_BUCKETS)
		value->buckets[bucket]++;
}

static __always_inline void tl_fill_span(struct tl_span *span, const struct tl_exchange *exchange,
					 const struct tl_text *text,
					 const struct tl_endpoints *endpoints, __u16 status,
					 __u8 end, __u64 now)
{
	span->start_ns = exchange->start_ns;
	span->end_ns = now;
	span->cgroup_id = exchange->cgroup_id;
	__builtin_memcpy(span->trace_id, exchange->context.trace_id, 16);
	__builtin_memcpy(span->span_id, exchange->context.span_id, 8);
	__builtin_memcpy(span->parent_span_id, exchange->parent_span_id, 8);
	__builtin_memcpy(span->local_addr, endpoints->local_addr, 16);
	__builtin_memcpy(span->peer_addr, endpoints->peer_addr, 16);
	span->local_port = endpoints->local_port;
	span->peer_port = endpoints->peer_port;
	span->status = status;
	span->kind = exchange->kind;
	span->evidence = exchange->evidence;
	span->trace_flags = exchange->context.trace_flags;
	span->http_minor = exchange->http_minor;
	span->end = end;
	span->method_len = text->method_len;
	span->target_len = text->target_len;
	span->host_len = text->host_len;
	span->tracestate_len = text->tracestate_len;
	span->flags = exchange->flags & TL_EXCHANGE_TLS ? TL_SPAN_TLS : 0;
	if (exchange->flags & TL_EXCHANGE_GRPC)
		span->flags |= TL_SPAN_GRPC;
	span->http_major = exchange->http_major;
	span->pid = exchange->pid;
	__builtin_memcpy(span->method, text->method, TL_METHOD_MAX);
	__builtin_memcpy(span->host, text->host, TL_HOST_MAX);
	__builtin_memcpy(span->target, text->target, TL_TARGET_MAX);
}

#define TL_SPAN_SHORT __builtin_offsetof(struct tl_span, tracestate)

/* Ends the exchange: measures it, sends its span when sampled, forgets the request. */
__noinline int tl_finish(TL_EXCHANGE, __u32 status, __u32 end)
{
	TL_TAKE_EXCHANGE(exchange, text, endpoints);
	__u64 now = bpf_ktime_get_ns();
	struct tl_span *span;

	if (!exchange || !text || !endpoints || !(exchange->flags & TL_EXCHANGE_ACTIVE))
		return 0;
	exchange->flags &= ~(TL_EXCHANGE_ACTIVE | TL_EXCHANGE_RESPONDING);
	if (exchange->probed)
		tl_count(exchange->probed + 1);
	if (exchange->kind == TL_KIND_SERVER) {
		tl_request_end(exchange->request);
		exchange->request = 0;
		tl_count(TL_REQUESTS_SERVER);
	} else {
		tl_count(TL_REQUESTS_CLIENT);
	}
	tl_measure(exchange, status, now - exchange->start_ns);

	if (!(exchange->context.trace_flags & TL_FLAG_SAMPLED)) {
		tl_count(TL_SPANS_UNSAMPLED);
		return 0;
	}
	if (text->tracestate_len) {
		span = bpf_ringbuf_reserve(&tl_spans, sizeof(*span), 0);
		if (span)
			__builtin_memcpy(span->tracestate, text->tracestate, TL_TRACESTATE_MAX);
	} else {
		span = bpf_ringbuf_reserve(&tl_spans, TL_SPAN_SHORT, 0);
	}
	if (!span) {
		tl_count(TL_SPANS_DROPPED_RING_FULL);
		return 0;
	}
	tl_fill_span(span, exchange, text, endpoints, status, end, now);
	tl_count(TL_SPANS_SENT);
	/*
	 * the agent reads the ring at intervals: a wake-up for each span costs more than the span
	 */
	bpf_ringbuf_submit(span, BPF_RB_NO_WAKEUP);
	return 0;
}

#endif
