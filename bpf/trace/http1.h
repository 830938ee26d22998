/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* trace/http1.h - the exchange of an HTTP/1 flow: what the parser finds begins and ends it. */
#ifndef THROUGHLINE_TRACE_HTTP1_H
#define THROUGHLINE_TRACE_HTTP1_H

#include "trace/begin.h"
#include "trace/span.h"

/*
 * Is it a guess which end of the connection is the client's? It is no guess once a whole header
 * block of a request was seen, or where we saw the connection being made. Before that, bytes in the
 * middle of an answer may look like the start of a request. TL_FLOW_CONNECTED says nothing inside
 * of TLS: the socket may not be known yet.
 */
static __always_inline bool tl_is_guess(const struct tl_flow *flow)
{
	if (flow->flags & TL_FLOW_USED)
		return false;
	return flow->flags & TL_FLOW_INSIDE || !(flow->flags & TL_FLOW_CONNECTED);
}

/* The guess was wrong: the next bytes that look like the start of a request decide again. */
static __always_inline void tl_guess_again(struct tl_flow *flow)
{
	tl_http_restart(&flow->in);
	tl_http_restart(&flow->out);
	flow->in.flags = 0;
	flow->out.flags = 0;
	flow->role = TL_ROLE_UNKNOWN;
}

/* The header block of a request has been received on the flow. */
static __always_inline void tl_flow_serves(struct tl_flow *flow, struct tl_text *text)
{
	struct tl_exchange *exchange = &flow->exchange;

	flow->flags |= TL_FLOW_USED;
	exchange->cgroup_id = flow->cgroup_id;
	exchange->http_minor = flow->in.minor;
	if (flow->flags & TL_FLOW_EARLY) {
		/*
		 * any host may have sent the segment, so nothing more is kept: tl_take_early() goes
		 * on
		 */
		flow->early_header = flow->in.flags;
		exchange->flags |= TL_EXCHANGE_ACTIVE;
		return;
	}
	flow->flags &= ~TL_FLOW_OPAQUE;
	tl_begin_server(TL_GIVE_EXCHANGE(flow, text), flow->in.flags);
}

/* The header block of a call is being sent on the flow; `parent` may be NULL. */
static __always_inline void tl_flow_calls(struct tl_flow *flow, struct tl_text *text,
					  const struct tl_parent *parent)
{
	struct tl_exchange *exchange = &flow->exchange;

	if (flow->flags & TL_FLOW_USED)
		flow->flags &= ~TL_FLOW_FIRST;
	else
		flow->flags |= TL_FLOW_FIRST;
	flow->flags |= TL_FLOW_USED;
	flow->flags &= ~TL_FLOW_OPAQUE;
	flow->caller = parent ? parent->key : 0;
	exchange->cgroup_id = flow->cgroup_id;
	exchange->http_minor = flow->out.minor;
	exchange->pid = flow->pid;
	tl_begin_client(exchange, text, flow->out.flags, parent);
}

static __always_inline void tl_flow_ends(struct tl_flow *flow, struct tl_text *text, __u32 status,
					 __u32 end)
{
	if (flow->flags & TL_FLOW_UNTRACED)
		flow->exchange.flags &= ~TL_EXCHANGE_ACTIVE;
	/* no exchange begins with a segment that any host may have sent */
	else if (!(flow->flags & TL_FLOW_EARLY))
		tl_finish(TL_GIVE_EXCHANGE(flow, text), status, end);
}

/*
 * A request begins. Has the answer to the one before it not been seen whole? When that answer could
 * not be followed, the exchange is closed. Else the requests are pipelined: requests of this
 * connection are not followed any more, and it is ignored once the first is answered. Returns true
 * then.
 */
static __always_inline bool tl_pipelined(struct tl_flow *flow, struct tl_text *text)
{
	struct tl_http *request = flow->role == TL_ROLE_SERVER ? &flow->in : &flow->out;
	struct tl_http *response = flow->role == TL_ROLE_SERVER ? &flow->out : &flow->in;

	if (!(flow->exchange.flags & TL_EXCHANGE_ACTIVE))
		return false;
	if (response->state >= TL_HTTP_UNTIL_CLOSE) {
		tl_flow_ends(flow, text, response->status, TL_END_CLOSED);
		tl_http_restart(response);
		return false;
	}
	tl_count(TL_SKIP_PIPELINED);
	/* for which of the requests the service makes its next call is not known */
	if (flow->role == TL_ROLE_SERVER)
		tl_request_end(flow->exchange.request);
	flow->exchange.request = 0;
	flow->flags |= TL_FLOW_PIPELINED;
	request->state = TL_HTTP_LOST;
	return true;
}

/*
 * `n` bytes have been read into the chunk, from offset `base` of the send. May they be parsed?
 * False when requests are pipelined. That is checked here, before the parser overwrites the text of
 * the present request.
 */
static __always_inline bool tl_chunk_ready(struct tl_flow *flow, struct tl_text *text,
					   const struct tl_http *http, struct tl_chunk *chunk,
					   __u32 n, __u32 base)
{
	if (http->state == TL_HTTP_START && !(http->flags & TL_HTTP_RESPONSE)) {
		/*
		 * an empty line in front of a request is a chunk of its own: no request has begun
		 * yet
		 */
		if (chunk->data[0] == '\r' || chunk->data[0] == '\n')
			n = 1;
		else if (tl_pipelined(flow, text))
			return false;
	}
	chunk->len = n;
	chunk->pos = 0;
	chunk->base = base;
	return true;
}

/*
 * What the parser has found in a chunk, as one number: the bytes that it has parsed, and above them
 * the enum tl_feed. The caller acts on it: then the chunk is not on the stack any more.
 */
#define TL_WENT_BITS 24
#define TL_WENT_MAX ((1U << TL_WENT_BITS) - 1)

static __always_inline int tl_went(__u32 bytes, int what)
{
	return (bytes & TL_WENT_MAX) | what << TL_WENT_BITS;
}

/* A message has ended in the direction `http`. */
static __always_inline void tl_message_ends(struct tl_flow *flow, struct tl_text *text,
					    struct tl_http *http)
{
	if (http->flags & TL_HTTP_RESPONSE && http->status >= 200) {
		tl_flow_ends(flow, text, http->status, TL_END_COMPLETE);
		if (flow->flags & TL_FLOW_PIPELINED)
			flow->role = TL_ROLE_OFF;
	} else if (http->flags & TL_HTTP_RESPONSE && flow->role == TL_ROLE_SERVER) {
		/* 100 Continue is not the answer yet */
		flow->exchange.flags &= ~TL_EXCHANGE_RESPONDING;
		tl_request_goes_on(flow->exchange.request);
	}
	tl_http_restart(http);
}

/*
 * Acts on what the parser has found in a direction of the flow. `call` begins the exchange of a
 * call.
 */
static __always_inline void tl_stream_event(struct tl_flow *flow, struct tl_text *text,
					    __u32 direction, __u32 what,
					    void (*call)(struct tl_flow *, struct tl_text *))
{
	struct tl_http *http = tl_http_of(flow, direction);

	if (what == TL_FEED_MESSAGE) {
		/* segments of a body may carry a context, too: it is not the next request's */
		if (direction == TL_IN && flow->role == TL_ROLE_SERVER)
			tl_incoming_used(flow->endpoints.socket);
		tl_message_ends(flow, text, http);
		return;
	}
	if (!(http->flags & TL_HTTP_RESPONSE)) {
		if (tl_pipelined(flow, text))
			return;
		if (flow->role == TL_ROLE_SERVER) {
			tl_flow_serves(flow, text);
			flow->out.flags |= TL_HTTP_RESPONSE;
			if (flow->out.state == TL_HTTP_LOST)
				tl_http_restart(&flow->out);
		} else {
			call(flow, text);
			flow->in.flags |= TL_HTTP_RESPONSE;
			if (flow->in.state == TL_HTTP_LOST)
				tl_http_restart(&flow->in);
		}
	}
	if (tl_http_frame(http, flow->exchange.method)) {
		if (http->state == TL_HTTP_TUNNEL) {
			tl_count(TL_SKIP_TUNNEL);
			tl_flow_ends(flow, text, http->status, TL_END_COMPLETE);
			flow->role = TL_ROLE_OFF;
			return;
		}
		tl_message_ends(flow, text, http);
	} else if (http->state == TL_HTTP_LOST) {
		tl_count(TL_SKIP_MALFORMED);
	}
}

/* The answer is being sent: from here on its thread is no evidence for calls of this request. */
static __always_inline void tl_responds(struct tl_flow *flow)
{
	struct tl_request *request;
	__u64 key = flow->exchange.request;

	if (flow->exchange.flags & TL_EXCHANGE_RESPONDING || !key)
		return;
	flow->exchange.flags |= TL_EXCHANGE_RESPONDING;
	request = bpf_map_lookup_elem(&tl_requests, &key);
	if (request) {
		/* the key: if the element holds another request by now, this does not match it */
		request->answering = key;
		tl_request_settle(request, key);
	}
}

#endif
