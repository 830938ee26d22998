/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* trace/begin.h - an exchange begins: its context, and where that comes from. */
#ifndef THROUGHLINE_TRACE_BEGIN_H
#define THROUGHLINE_TRACE_BEGIN_H

#include "trace/beside.h"
#include "trace/flow.h"
#include "trace/request.h"
#include "trace/sample.h"

/*
 * Takes the context that is in a message's header, and returns its flags. -1: there is none, or it
 * is invalid. `header`: enum tl_header_flags.
 */
static __always_inline int tl_take_header(struct tl_exchange *exchange, struct tl_text *text,
					  __u32 header)
{
	int flags = -1;

	if (!(header & TL_HEADER_HAS_TRACEPARENT))
		return -1;
	if (!(header & TL_HEADER_BAD_TRACEPARENT))
		flags = tl_parse_traceparent(TL_GIVE_TEXT(text));
	if (flags < 0) {
		tl_count(TL_RESTARTED_TRACEPARENT);
		text->tracestate_len = 0;
		return -1;
	}
	__builtin_memcpy(exchange->context.trace_id, text->trace_id, 16);
	__builtin_memcpy(exchange->parent_span_id, text->parent_span_id, 8);
	return flags;
}

static __always_inline void tl_take_tracestate(struct tl_text *text, __u32 header)
{
	if (header & TL_HEADER_BAD_TRACESTATE) {
		tl_count(TL_DROPPED_TRACESTATE);
		text->tracestate_len = 0;
	}
}

/* A new trace begins with this exchange. */
static __always_inline void tl_begin_trace(struct tl_exchange *exchange)
{
	tl_random_id(exchange->context.trace_id, 4);
	__builtin_memset(exchange->parent_span_id, 0, 8);
	exchange->context.trace_flags = TL_FLAG_RANDOM | tl_sample_root(exchange->context.trace_id);
	exchange->evidence = TL_EVIDENCE_NONE;
}

static __always_inline void tl_begin(struct tl_exchange *exchange, struct tl_text *text, __u8 kind)
{
	if (exchange->probed)
		tl_count(exchange->probed);
	exchange->kind = kind;
	exchange->method = tl_method_code(text);
	exchange->start_ns = bpf_ktime_get_ns();
	exchange->flags |= TL_EXCHANGE_ACTIVE;
	exchange->flags &= ~(TL_EXCHANGE_RESPONDING | TL_EXCHANGE_LIKELY | TL_EXCHANGE_PASSED_ON);
	if (exchange->flags & TL_EXCHANGE_READ && exchange->request)
		__builtin_memcpy(exchange->context.span_id, &exchange->request, 8);
	else
		tl_random_id(exchange->context.span_id, 2);
	exchange->flags &= ~TL_EXCHANGE_READ;
}

/* The entry of the request `key`, made where there is none. NULL: there is no room. */
static __always_inline struct tl_request *tl_make_request(__u64 key)
{
	struct tl_request *request;

	tl_insert_zeros(&tl_requests, &key, BPF_NOEXIST);
	request = bpf_map_lookup_elem(&tl_requests, &key);
	if (!request)
		tl_count(TL_FULL_REQUESTS);
	return request;
}

/*
 * The current thread has read a request on a server connection, and its text is not parsed yet: makes
 * its entry, which other code may bind to a thread or task. tl_begin() and tl_keep_request() complete
 * it. Where there is no room, the exchange has no request yet.
 */
static __always_inline void tl_begin_unparsed(struct tl_exchange *exchange)
{
	struct tl_request *request;
	__u64 key;

	tl_random_id(exchange->context.span_id, 2);
	key = tl_key(exchange->context.span_id);
	request = tl_make_request(key);
	if (!request)
		return;
	request->start_ns = bpf_ktime_get_ns() | TL_UNPARSED;
	tl_order();
	*(volatile __u64 *)request->span_id = key;
	exchange->flags |= TL_EXCHANGE_READ;
	exchange->request = key;
}

/* Keeps what the calls of a request inherit from it. */
static __always_inline void tl_keep_request(struct tl_exchange *exchange, struct tl_text *text,
					    __u64 key)
{
	struct tl_request *request;

	/* there is one if the request was read before it was parsed: tl_begin_unparsed() */
	request = tl_make_request(key);
	if (!request)
		return;
	__builtin_memcpy(request->trace_id, exchange->context.trace_id, 16);
	__builtin_memcpy(request->parent_span_id, exchange->parent_span_id, 8);
	request->trace_flags = exchange->context.trace_flags;
	if (exchange->probed)
		request->flags = TL_REQUEST_PROBED;
	if (text->tracestate_len)
		tl_keep_tracestate(text, request, key);
	/* written last: see tl_is_request() and TL_UNPARSED */
	tl_order();
	*(volatile __u64 *)&request->start_ns = exchange->start_ns;
	tl_order_weak();
	*(volatile __u64 *)request->span_id = key;
}

/*
 * The header block of a request has been received: a server span begins. `header`: enum
 * tl_header_flags.
 */
__noinline int tl_begin_server(TL_EXCHANGE, __u32 header)
{
	TL_TAKE_EXCHANGE(exchange, text, endpoints);
	const struct tl_settings *settings = tl_settings_now();
	__u64 key;
	int flags;

	if (!exchange || !text || !endpoints)
		return 0;
	tl_begin(exchange, text, TL_KIND_SERVER);
	exchange->pid = 0;
	tl_take_tracestate(text, header);
	flags = tl_take_header(exchange, text, header);
	exchange->evidence = TL_EVIDENCE_HEADER;
	if (flags < 0) {
		text->tracestate_len = 0;
		flags = tl_take_incoming(endpoints->socket, exchange->context.trace_id,
					 exchange->parent_span_id);
		exchange->evidence = TL_EVIDENCE_PACKET;
	} else {
		tl_incoming_used(endpoints->socket);
	}
	if (flags < 0)
		tl_begin_trace(exchange);
	else if (settings && settings->parent_based)
		exchange->context.trace_flags = flags;
	else
		exchange->context.trace_flags = (flags & TL_FLAG_RANDOM) |
						tl_sample_root(exchange->context.trace_id);
	key = tl_key(exchange->context.span_id);
	tl_keep_request(exchange, text, key);
	exchange->request = key;
	return 0;
}

static __always_inline bool tl_is_trace(const __u8 *one, const __u8 *other)
{
	return tl_key(one) == tl_key(other) && tl_key(one + 8) == tl_key(other + 8);
}

/*
 * A call begins: gives it a context. Without a parent (NULL) a trace begins. `header`: enum
 * tl_header_flags.
 */
static __always_inline void tl_begin_client(struct tl_exchange *exchange, struct tl_text *text,
					    __u32 header, const struct tl_parent *parent)
{
	int flags;

	tl_begin(exchange, text, TL_KIND_CLIENT);
	tl_take_tracestate(text, header);
	flags = tl_take_header(exchange, text, header);
	if (parent)
		tl_settle(parent->key, flags < 0);
	if (flags >= 0) {
		/*
		 * The application's own header wins. But a proxy passes on the header that it has
		 * received: then it names the parent of our server span, and the parent that the
		 * evidence found is the better one within the same trace. The header may say so, too:
		 * see tl_update_header().
		 */
		exchange->evidence = TL_EVIDENCE_HEADER;
		exchange->context.trace_flags = flags;
		if (parent && tl_key(parent->parent_span_id) == tl_key(exchange->parent_span_id)) {
			__builtin_memcpy(exchange->parent_span_id, &parent->key, 8);
			exchange->evidence = parent->evidence;
			if (parent->likely)
				exchange->flags |= TL_EXCHANGE_LIKELY;
			else if (tl_is_trace(exchange->context.trace_id, parent->trace_id))
				exchange->flags |= TL_EXCHANGE_PASSED_ON;
		}
		tl_count(TL_ADOPTED_HEADER);
		return;
	}
	if (!parent) {
		tl_begin_trace(exchange);
		return;
	}
	__builtin_memcpy(exchange->context.trace_id, parent->trace_id, 16);
	__builtin_memcpy(exchange->parent_span_id, &parent->key, 8);
	exchange->context.trace_flags = parent->trace_flags;
	exchange->evidence = parent->evidence;
	if (parent->likely)
		exchange->flags |= TL_EXCHANGE_LIKELY;
}

#endif
