/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* trace/span.h - an exchange ends: it is counted, and the record of its span is sent. */
#ifndef THROUGHLINE_TRACE_SPAN_H
#define THROUGHLINE_TRACE_SPAN_H

#include "trace/durations.h"
#include "trace/flow.h"
#include "trace/request.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_spans SEC(".maps");

static __always_inline void tl_fill_path(struct tl_span *span, const struct tl_text *text)
{
	__builtin_memcpy(span->path, text->path, TL_PATH_MAX);
	span->path_len = text->path_len;
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
	if (exchange->flags & TL_EXCHANGE_UNIX)
		span->flags |= TL_SPAN_UNIX;
	if (exchange->flags & TL_EXCHANGE_LIKELY)
		span->flags |= TL_SPAN_LIKELY;
	span->http_major = exchange->http_major;
	span->pid = exchange->pid;
	__builtin_memcpy(span->method, text->method, TL_METHOD_MAX);
	__builtin_memcpy(span->host, text->host, TL_HOST_MAX);
	__builtin_memcpy(span->target, text->target, TL_TARGET_MAX);
}

#define TL_SPAN_SHORT __builtin_offsetof(struct tl_span, path)
#define TL_SPAN_PATH __builtin_offsetof(struct tl_span, tracestate)

/* Ends the exchange: measures it, sends its span when sampled, forgets the request. */
__noinline int tl_finish(TL_EXCHANGE, __u32 status, __u32 end)
{
	TL_TAKE_EXCHANGE(exchange, text, endpoints);
	__u64 now = bpf_ktime_get_ns();
	struct tl_span *span;
	__u64 key;

	if (!exchange || !text || !endpoints || !(exchange->flags & TL_EXCHANGE_ACTIVE))
		return 0;
	exchange->flags &= ~(TL_EXCHANGE_ACTIVE | TL_EXCHANGE_RESPONDING);
	if (exchange->probed)
		tl_count(exchange->probed + 1);
	if (exchange->kind == TL_KIND_SERVER) {
		key = exchange->request;
		/* the value says nothing: the key is one that needs no more stack */
		if (end == TL_END_CLOSED)
			bpf_map_update_elem(&tl_aborted, &key, &key, BPF_ANY);
		tl_request_end(key);
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
		if (span) {
			tl_fill_path(span, text);
			__builtin_memcpy(span->tracestate, text->tracestate, TL_TRACESTATE_MAX);
		}
	} else if (text->path_len) {
		span = bpf_ringbuf_reserve(&tl_spans, TL_SPAN_PATH, 0);
		if (span)
			tl_fill_path(span, text);
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
