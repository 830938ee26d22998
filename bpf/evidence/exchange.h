/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * evidence/exchange.h - one request and its response on a connection: begin, end, and the record.
 */
#ifndef THROUGHLINE_EXCHANGE_H
#define THROUGHLINE_EXCHANGE_H

#include "evidence/context.h"
#include "wire/option.h"

const __u64 tl_bounds_ns[TL_BUCKETS - 1] = {
	5000000,   10000000,  25000000,   50000000,   75000000,   100000000,  250000000,
	500000000, 750000000, 1000000000, 2500000000, 5000000000, 7500000000, 10000000000,
};

#define TL_AF_INET 2

/* The fields of a socket are reached at constant offsets only, which merging branches loses. */
static __always_inline __u32 tl_keep(__u32 value)
{
	asm volatile("" : "+r"(value));
	return value;
}

static __always_inline void tl_set_addresses(struct tl_conn *conn, struct bpf_sock *sk)
{
	__u32 *local = (__u32 *)conn->local_addr;
	__u32 *peer = (__u32 *)conn->peer_addr;

	conn->local_port = tl_keep(sk->src_port);
	conn->peer_port = bpf_ntohs(tl_keep(sk->dst_port));
	if (sk->family == TL_AF_INET) {
		local[2] = bpf_htonl(0xffff);
		local[3] = tl_keep(sk->src_ip4);
		peer[2] = bpf_htonl(0xffff);
		peer[3] = tl_keep(sk->dst_ip4);
		return;
	}
	local[0] = tl_keep(sk->src_ip6[0]);
	local[1] = tl_keep(sk->src_ip6[1]);
	local[2] = tl_keep(sk->src_ip6[2]);
	local[3] = tl_keep(sk->src_ip6[3]);
	peer[0] = tl_keep(sk->dst_ip6[0]);
	peer[1] = tl_keep(sk->dst_ip6[1]);
	peer[2] = tl_keep(sk->dst_ip6[2]);
	peer[3] = tl_keep(sk->dst_ip6[3]);
}

/* An address of a socket, as IPv4-mapped IPv6 address. */
static __always_inline void tl_copy_address(__u8 *out, __u16 family, __u32 ip4,
					    const struct in6_addr *ip6)
{
	__u32 *address = (__u32 *)out;

	if (family == TL_AF_INET) {
		address[0] = 0;
		address[1] = 0;
		address[2] = bpf_htonl(0xffff);
		address[3] = ip4;
		return;
	}
	address[0] = ip6->in6_u.u6_addr32[0];
	address[1] = ip6->in6_u.u6_addr32[1];
	address[2] = ip6->in6_u.u6_addr32[2];
	address[3] = ip6->in6_u.u6_addr32[3];
}

/* May one more series of the cgroup be measured? Whoever answers it must not use up the room of others. */
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
static __always_inline void tl_measure(struct tl_conn *conn, __u8 kind, __u8 method, __u8 minor,
				       __u16 status, __u64 duration)
{
	struct tl_duration_key key = {
		.cgroup_id = conn->cgroup_id,
		.status = status,
		.kind = kind,
		.method = method,
		.http_minor = minor,
		.tls = conn->flags & TL_CONN_TLS ? 1 : 0,
		.http_major = conn->http_major,
		.grpc = conn->flags & TL_CONN_GRPC ? 1 : 0,
	};
	struct tl_duration *value = bpf_map_lookup_elem(&tl_durations, &key);
	__u32 bucket = 0;
	__u32 i;

	if (!value) {
		const void *nothing;
		__u32 zero = 0;

		nothing = bpf_map_lookup_elem(&tl_nothing, &zero);
		if (nothing && tl_series_left(conn->cgroup_id))
			bpf_map_update_elem(&tl_durations, &key, nothing, BPF_NOEXIST);
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

static __always_inline void tl_fill_span(struct tl_span *span, struct tl_conn *conn,
					 struct tl_text *text, __u8 kind, __u16 status, __u8 end,
					 __u64 now)
{
	span->start_ns = conn->start_ns;
	span->end_ns = now;
	span->cgroup_id = conn->cgroup_id;
	__builtin_memcpy(span->trace_id, conn->trace_id, 16);
	__builtin_memcpy(span->span_id, conn->span_id, 8);
	__builtin_memcpy(span->parent_span_id, conn->parent_span_id, 8);
	__builtin_memcpy(span->local_addr, conn->local_addr, 16);
	__builtin_memcpy(span->peer_addr, conn->peer_addr, 16);
	span->local_port = conn->local_port;
	span->peer_port = conn->peer_port;
	span->status = status;
	span->kind = kind;
	span->evidence = conn->evidence;
	span->trace_flags = conn->trace_flags;
	span->http_minor = kind == TL_KIND_SERVER ? conn->in.minor : conn->out.minor;
	span->end = end;
	span->method_len = text->method_len;
	span->target_len = text->target_len;
	span->host_len = text->host_len;
	span->tracestate_len = text->tracestate_len;
	span->flags = conn->flags & TL_CONN_TLS ? TL_SPAN_TLS : 0;
	if (conn->flags & TL_CONN_GRPC)
		span->flags |= TL_SPAN_GRPC;
	span->http_major = conn->http_major;
	span->pid = conn->pid;
	__builtin_memcpy(span->method, text->method, TL_METHOD_MAX);
	__builtin_memcpy(span->host, text->host, TL_HOST_MAX);
	__builtin_memcpy(span->target, text->target, TL_TARGET_MAX);
}

/*
 * Exchanges that only probes see are kept in maps of which the oldest entries give way. What has begun and does
 * not end was lost: it gave way, or its process has died.
 */
static __always_inline void tl_probed_begins(const struct tl_conn *conn)
{
	if (conn->flags & TL_CONN_GO)
		tl_count(TL_GO_BEGUN);
	else if (conn->flags & TL_CONN_TLS)
		tl_count(TL_TLS_BEGUN);
}

static __always_inline void tl_probed_ends(const struct tl_conn *conn)
{
	if (conn->flags & TL_CONN_GO)
		tl_count(TL_GO_ENDED);
	else if (conn->flags & TL_CONN_TLS)
		tl_count(TL_TLS_ENDED);
}

#define TL_SPAN_SHORT __builtin_offsetof(struct tl_span, tracestate)

/* Ends the exchange: measures it, sends its span when sampled, forgets the request. */
__noinline int tl_finish(TL_EXCHANGE, __u32 status, __u32 end)
{
	TL_TAKE_EXCHANGE(conn, text);
	__u64 now = bpf_ktime_get_ns();
	struct tl_span *span;
	__u8 kind, method, minor;

	if (!conn || !text || !(conn->flags & TL_CONN_ACTIVE))
		return 0;
	if (conn->flags & TL_CONN_EARLY)
		return 0; /* of a segment that may be anybody's nothing has begun */
	conn->flags &= ~(TL_CONN_ACTIVE | TL_CONN_RESPONDING);
	tl_probed_ends(conn);
	if (conn->role == TL_ROLE_SERVER) {
		kind = TL_KIND_SERVER;
		method = conn->in.method;
		minor = conn->in.minor;
		tl_request_end(conn->request);
		conn->request = 0;
		tl_count(TL_REQUESTS_SERVER);
	} else {
		kind = TL_KIND_CLIENT;
		method = conn->out.method;
		minor = conn->out.minor;
		tl_count(TL_REQUESTS_CLIENT);
	}
	tl_measure(conn, kind, method, minor, status, now - conn->start_ns);

	if (!(conn->trace_flags & TL_FLAG_SAMPLED)) {
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
	tl_fill_span(span, conn, text, kind, status, end, now);
	tl_count(TL_SPANS_SENT);
	/* the agent drains by the clock: a wake-up per span costs more than the span */
	bpf_ringbuf_submit(span, BPF_RB_NO_WAKEUP);
	return 0;
}

/*
 * A second request has come before the answer to the first was seen whole. When the answer was
 * lost from sight, the exchange is closed; else the requests are pipelined: what is asked is not
 * followed any more, and the connection is left alone once the first is answered. Returns true then.
 */
static __always_inline bool tl_pipelined(struct tl_conn *conn, struct tl_text *text)
{
	struct tl_http *request = conn->role == TL_ROLE_SERVER ? &conn->in : &conn->out;
	struct tl_http *response = conn->role == TL_ROLE_SERVER ? &conn->out : &conn->in;

	if (!(conn->flags & TL_CONN_ACTIVE))
		return false;
	if (response->state >= TL_HTTP_UNTIL_CLOSE) {
		tl_finish(TL_GIVE_EXCHANGE(conn, text), response->status, TL_END_CLOSED);
		tl_http_restart(response);
		return false;
	}
	tl_count(TL_SKIP_PIPELINED);
	/* whose call it is that the service makes next cannot be told */
	if (conn->role == TL_ROLE_SERVER)
		tl_request_end(conn->request);
	conn->request = 0;
	conn->flags |= TL_CONN_PIPELINED;
	request->state = TL_HTTP_LOST;
	return true;
}

/*
 * `n` bytes have been read into the chunk, at offset `base` of the send: may they be parsed? False when
 * requests are pipelined, which is asked before the parser overwrites the text of the one under way.
 */
static __always_inline bool tl_chunk_ready(struct tl_conn *conn, struct tl_text *text,
					   const struct tl_http *http, struct tl_chunk *chunk,
					   __u32 n, __u32 base)
{
	if (http->state == TL_HTTP_START && !(http->flags & TL_HTTP_RESPONSE)) {
		/* an empty line in front of a request is a chunk of its own: nothing has begun yet */
		if (chunk->data[0] == '\r' || chunk->data[0] == '\n')
			n = 1;
		else if (tl_pipelined(conn, text))
			return false;
	}
	chunk->len = n;
	chunk->pos = 0;
	chunk->base = base;
	return true;
}

/* The request's calls will need its tracestate, long after `text` holds the next request's. */
static __always_inline void tl_keep_tracestate(struct tl_text *text, struct tl_request *request,
					       __u64 key)
{
	struct tl_tracestate *state;
	const void *nothing;
	__u32 zero = 0;

	nothing = bpf_map_lookup_elem(&tl_nothing, &zero);
	if (!nothing)
		return;
	bpf_map_update_elem(&tl_tracestates, &key, nothing, BPF_ANY);
	state = bpf_map_lookup_elem(&tl_tracestates, &key);
	if (!state) {
		tl_count(TL_FULL_TRACESTATES);
		return;
	}
	__builtin_memcpy(state->text, text->tracestate, TL_TRACESTATE_MAX);
	asm volatile("" ::: "memory");
	state->request = key;
	request->tracestate_len = text->tracestate_len;
}

/* The calls of a request that has begun inherit from what is kept of it here. */
static __always_inline void tl_keep_request(struct tl_conn *conn, struct tl_text *text, __u64 key)
{
	struct tl_request *request;
	const void *nothing;
	__u32 zero = 0;

	nothing = bpf_map_lookup_elem(&tl_nothing, &zero);
	if (!nothing)
		return;
	bpf_map_update_elem(&tl_requests, &key, nothing, BPF_ANY);
	request = bpf_map_lookup_elem(&tl_requests, &key);
	if (!request) {
		tl_count(TL_FULL_REQUESTS);
		return;
	}
	request->start_ns = conn->start_ns;
	__builtin_memcpy(request->trace_id, conn->trace_id, 16);
	__builtin_memcpy(request->parent_span_id, conn->parent_span_id, 8);
	request->trace_flags = conn->trace_flags;
	if (conn->flags & (TL_CONN_TLS | TL_CONN_GO))
		request->flags = TL_REQUEST_PROBED;
	if (text->tracestate_len)
		tl_keep_tracestate(text, request, key);
	/* last: see tl_is_request() */
	asm volatile("" ::: "memory");
	*(volatile __u64 *)request->span_id = key;
}

/* The header block of a request has come in: a server span begins. */
__noinline int tl_begin_server(TL_EXCHANGE)
{
	TL_TAKE_EXCHANGE(conn, text);
	const struct tl_settings *settings = tl_settings_now();
	__u64 key;
	int flags;

	if (!conn || !text)
		return 0;
	if (conn->flags & TL_CONN_EARLY) {
		/* nothing is kept for a segment that may be anybody's: tl_take_early() goes on */
		conn->early_header = conn->in.flags;
		conn->flags |= TL_CONN_ACTIVE | TL_CONN_USED;
		return 0;
	}
	tl_probed_begins(conn);
	conn->in.method = tl_method_code(text);
	conn->start_ns = bpf_ktime_get_ns();
	conn->pid = 0;
	conn->flags |= TL_CONN_ACTIVE | TL_CONN_USED;
	conn->flags &= ~(TL_CONN_RESPONDING | TL_CONN_OPAQUE);
	tl_random_id(conn->span_id, 2);
	tl_take_tracestate(&conn->in, text);
	flags = tl_take_header(conn, &conn->in, text);
	conn->evidence = TL_EVIDENCE_HEADER;
	if (flags < 0) {
		text->tracestate_len = 0;
		flags = tl_take_option(conn);
		conn->evidence = TL_EVIDENCE_PACKET;
	} else {
		tl_option_used(conn->socket);
	}
	if (flags >= 0) {
		if (settings && settings->parent_based)
			conn->trace_flags = flags;
		else
			conn->trace_flags = (flags & TL_FLAG_RANDOM) |
					    tl_sample_root(conn->trace_id);
	} else {
		tl_random_id(conn->trace_id, 4);
		__builtin_memset(conn->parent_span_id, 0, 8);
		conn->evidence = TL_EVIDENCE_NONE;
		conn->trace_flags = TL_FLAG_RANDOM | tl_sample_root(conn->trace_id);
	}

	key = tl_key(conn->span_id);
	tl_keep_request(conn, text, key);
	conn->request = key;
	return 0;
}

/* Gives a client exchange its context; `parent` may be NULL, which starts a trace. */
static __always_inline void tl_begin_client(struct tl_conn *conn, struct tl_text *text,
					    const struct tl_parent *parent)
{
	__u64 own;
	int flags;

	tl_probed_begins(conn);
	conn->out.method = tl_method_code(text);
	conn->start_ns = bpf_ktime_get_ns();
	if (conn->flags & TL_CONN_USED)
		conn->flags &= ~TL_CONN_FIRST;
	else
		conn->flags |= TL_CONN_FIRST;
	conn->flags |= TL_CONN_ACTIVE | TL_CONN_USED;
	conn->flags &= ~(TL_CONN_RESPONDING | TL_CONN_OPAQUE);
	conn->parent = parent ? parent->key : 0;
	tl_random_id(conn->span_id, 2);
	tl_take_tracestate(&conn->out, text);
	flags = tl_take_header(conn, &conn->out, text);
	if (parent)
		tl_settle(parent->key, true);
	if (flags >= 0) {
		/*
		 * The application's own header wins. One that is passed on as it came in (proxies do
		 * that) names the caller's span, which is our server span's parent: then the
		 * evidence is the better parent within the same trace.
		 */
		own = tl_key(conn->parent_span_id);
		conn->evidence = TL_EVIDENCE_HEADER;
		conn->trace_flags = flags;
		if (parent && tl_key(parent->parent_span_id) == own) {
			__builtin_memcpy(conn->parent_span_id, &parent->key, 8);
			conn->evidence = parent->evidence;
		}
		tl_count(TL_ADOPTED_HEADER);
		return;
	}
	if (parent) {
		__builtin_memcpy(conn->trace_id, parent->trace_id, 16);
		__builtin_memcpy(conn->parent_span_id, &parent->key, 8);
		conn->trace_flags = parent->trace_flags;
		conn->evidence = parent->evidence;
		return;
	}
	tl_random_id(conn->trace_id, 4);
	__builtin_memset(conn->parent_span_id, 0, 8);
	conn->trace_flags = TL_FLAG_RANDOM | tl_sample_root(conn->trace_id);
	conn->evidence = TL_EVIDENCE_NONE;
}

/*
 * May bytes be the start of a request? Up to four capital letters, or three and a space; the parser
 * checks the rest. Those of an answer are `HTTP`.
 */
static __always_inline bool tl_begins_request(const __u8 *start, __u32 n)
{
	__u32 i;

	if (n == 4 && start[0] == 'H' && start[1] == 'T' && start[2] == 'T' && start[3] == 'P')
		return false;
	for (i = 0; i < 4; i++) {
		if (i >= n)
			break;
		if (start[i] >= 'A' && start[i] <= 'Z')
			continue;
		if (i != 3 || start[i] != ' ')
			return false;
	}
	return true;
}

/*
 * Until a header block of a request was seen whole, which end of a connection is the client's is a guess,
 * unless we saw it being made: bytes in the middle of an answer may look like the start of a request.
 * (Of TLS the flag says nothing: its socket may not be known yet.)
 */
static __always_inline bool tl_is_guess(const struct tl_conn *conn)
{
	if (conn->flags & TL_CONN_USED)
		return false;
	return conn->flags & TL_CONN_TLS || !(conn->flags & TL_CONN_CONNECTED);
}

/* The guess was wrong: whatever looks like the start of a request is looked at anew. */
static __always_inline void tl_guess_again(struct tl_conn *conn)
{
	tl_http_restart(&conn->in);
	tl_http_restart(&conn->out);
	conn->in.flags = 0;
	conn->out.flags = 0;
	conn->role = TL_ROLE_UNKNOWN;
}

/* Is what could not be parsed the preface of HTTP/2? Then nothing behind it is HTTP/1. */
static __always_inline bool tl_is_http2(const struct tl_text *text)
{
	return text->method_len == 3 && text->method[0] == 'P' && text->method[1] == 'R' &&
	       text->method[2] == 'I';
}

/*
 * What a parser of a chunk has come to, in one number: how many bytes it has gone on, and above them the enum
 * tl_feed. What is to be done there is done by its caller, whose stack is not below the chunk's.
 */
#define TL_WENT_BITS 24
#define TL_WENT_MAX ((1U << TL_WENT_BITS) - 1)

static __always_inline int tl_went(__u32 bytes, int what)
{
	return (bytes & TL_WENT_MAX) | what << TL_WENT_BITS;
}

/* One end of message was reached in direction `http`. */
static __always_inline void tl_message_ends(struct tl_conn *conn, struct tl_text *text,
					    struct tl_http *http)
{
	if (http->flags & TL_HTTP_RESPONSE && http->status >= 200) {
		tl_finish(TL_GIVE_EXCHANGE(conn, text), http->status, TL_END_COMPLETE);
		if (conn->flags & TL_CONN_PIPELINED)
			conn->role = TL_ROLE_OFF;
	} else if (http->flags & TL_HTTP_RESPONSE && conn->role == TL_ROLE_SERVER) {
		__u64 key = conn->request;
		struct tl_request *request = bpf_map_lookup_elem(&tl_requests, &key);

		/* 100 Continue is no answer yet */
		conn->flags &= ~TL_CONN_RESPONDING;
		if (request)
			request->answering = 0;
	}
	tl_http_restart(http);
}

/*
 * The parser stopped in a direction of a connection: acts on it. `call` begins the exchange of a
 * request that goes out.
 */
static __always_inline void tl_stream_event(struct tl_conn *conn, struct tl_text *text,
					    __u32 direction, __u32 what,
					    void (*call)(struct tl_conn *, struct tl_text *))
{
	struct tl_http *http = tl_http_of(conn, direction);
	__u8 method;

	if (what == TL_FEED_MESSAGE) {
		/* the segments of a body may carry the context, too: not for the next request */
		if (direction == TL_IN && conn->role == TL_ROLE_SERVER)
			tl_option_used(conn->socket);
		tl_message_ends(conn, text, http);
		return;
	}
	if (!(http->flags & TL_HTTP_RESPONSE)) {
		if (tl_pipelined(conn, text))
			return;
		if (conn->role == TL_ROLE_SERVER) {
			tl_begin_server(TL_GIVE_EXCHANGE(conn, text));
			conn->out.flags |= TL_HTTP_RESPONSE;
			if (conn->out.state == TL_HTTP_LOST)
				tl_http_restart(&conn->out);
		} else {
			call(conn, text);
			conn->in.flags |= TL_HTTP_RESPONSE;
			if (conn->in.state == TL_HTTP_LOST)
				tl_http_restart(&conn->in);
		}
		method = http->method;
	} else {
		method = conn->role == TL_ROLE_SERVER ? conn->in.method : conn->out.method;
	}
	if (tl_http_frame(http, method)) {
		if (http->state == TL_HTTP_TUNNEL) {
			tl_count(TL_SKIP_TUNNEL);
			tl_finish(TL_GIVE_EXCHANGE(conn, text), http->status, TL_END_COMPLETE);
			conn->role = TL_ROLE_OFF;
			return;
		}
		tl_message_ends(conn, text, http);
	} else if (http->state == TL_HTTP_LOST) {
		tl_count(TL_SKIP_MALFORMED);
	}
}

/* A response begins to leave: its request makes no more calls that thread evidence could tell. */
static __always_inline void tl_responds(struct tl_conn *conn)
{
	struct tl_request *request;
	__u64 key = conn->request;

	if (conn->flags & TL_CONN_RESPONDING || !key)
		return;
	conn->flags |= TL_CONN_RESPONDING;
	request = bpf_map_lookup_elem(&tl_requests, &key);
	if (request) {
		/* its key: should the element be another's by now, that says nothing of it */
		request->answering = key;
		tl_request_settle(request, key);
	}
}

#endif
