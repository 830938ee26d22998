/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* io/unix_stream.h - what is sent on a Unix socket, and the exchanges that it begins and ends. */
#ifndef THROUGHLINE_IO_UNIX_STREAM_H
#define THROUGHLINE_IO_UNIX_STREAM_H

#define TL_MEMORY_LOST TL_UNIX_UNSEEN

#include "io/unix_serve.h"
#include "trace/fastcgi.h"
#include "trace/memory.h"

#define TL_VECTORS 64
#define TL_RANGES 16 /* times that up to TL_CHUNKS_MAX chunks of a buffer are parsed */
/*
 * At most so many bytes are parsed before they are sent: they are in the first buffer that the
 * kernel queues. What follows is parsed when the system call returns.
 */
#define TL_AHEAD 32768

/*
 * The current thread has sent a call, whose text is parsed. A global function, to have a stack of
 * its own.
 */
__noinline int tl_unix_asks(struct tl_flow *flow, struct tl_text *text)
{
	struct tl_parent parent;
	__u16 flags;
	bool found;

	if (!flow || !text)
		return 0;
	flow->flags &= ~TL_FLOW_ASKS;
	if (flow->flags & TL_FLOW_UNTRACED) {
		flow->flags |= TL_FLOW_USED;
		flow->exchange.flags |= TL_EXCHANGE_ACTIVE;
		flow->exchange.start_ns = bpf_ktime_get_ns();
		flow->exchange.method = tl_method_code(text);
		flow->exchange.http_minor = flow->out.minor;
		return 0;
	}
	found = tl_find_parent(flow, &parent);
	/* the message may have ended already */
	flags = flow->out.flags;
	flow->out.flags = flow->early_header;
	tl_flow_calls(flow, text, found ? &parent : NULL);
	flow->out.flags = flags;
	if (!(flow->early_header & TL_HEADER_HAS_TRACEPARENT))
		tl_inherit_tracestate(text, found ? &parent : NULL);
	return 0;
}

/*
 * The header block of a call is complete. Who makes the call is asked when all bytes are parsed: the
 * verifier allows eight functions, one in another.
 */
static __always_inline void tl_unix_call(struct tl_flow *flow, struct tl_text *text)
{
	flow->early_header = flow->out.flags;
	flow->exchange.flags |= TL_EXCHANGE_ACTIVE;
	flow->flags |= TL_FLOW_ASKS;
}

/* A global function, which the verifier walks once. */
__noinline int tl_memory_event(struct tl_flow *flow, struct tl_text *text, __u32 direction,
			       __u32 what)
{
	if (flow && text && what != TL_FEED_MORE)
		tl_stream_event(flow, text, direction & 1, what, tl_unix_call);
	return 0;
}

/* The bytes are not of the protocol that they looked like. */
static __always_inline void tl_unix_not_http(struct tl_flow *flow, struct tl_text *text)
{
	flow->out.state = TL_HTTP_LOST;
	if (flow->flags & TL_FLOW_USED || flow->role == TL_ROLE_SERVER) {
		tl_unix_count(flow, TL_SKIP_MALFORMED);
		return;
	}
	tl_unix_count(flow, TL_SKIP_NOT_HTTP);
	if (!tl_is_guess(flow) || tl_is_http2(text))
		flow->role = TL_ROLE_OFF;
	else
		tl_guess_again(flow);
}

/* Acts on what was found in FastCGI. A global function, which the verifier walks once. */
__noinline int tl_unix_fastcgi_event(struct tl_flow *flow, struct tl_text *text, __u32 what)
{
	if (flow && text)
		tl_fastcgi_event(flow, text, &flow->out, what, tl_unix_call);
	return 0;
}

/*
 * Parses the next chunk of `left` bytes of FastCGI at `address`. Returns the same as
 * tl_memory_chunk().
 */
__noinline int tl_unix_fastcgi_chunk(struct tl_unix *end, struct tl_text *text, __u64 address,
				     __u32 left)
{
	struct tl_chunk chunk = {};
	__u32 skipped, n;
	int what;

	if (!end || !text || end->flow.out.state >= TL_HTTP_UNTIL_CLOSE)
		return 0;
	skipped = tl_fastcgi_skip(&end->fastcgi, left);
	if (skipped >= left)
		return skipped;
	n = left - skipped;
	if (n > TL_CHUNK)
		n = TL_CHUNK;
	if (bpf_probe_read_user(chunk.data, tl_length(n, TL_CHUNK), (void *)(address + skipped))) {
		tl_unix_count(&end->flow, TL_UNIX_UNSEEN);
		end->flow.out.state = TL_HTTP_LOST;
		return 0;
	}
	chunk.len = n;
	what = tl_fastcgi_feed(&end->flow.out, text, &chunk, &end->fastcgi);
	if (what == TL_FEED_LOST)
		return -1;
	return tl_went(skipped + chunk.pos, what);
}

/*
 * Parses up to TL_CHUNKS_MAX chunks of FastCGI. Returns the same as tl_memory_chunks(). A global
 * function, which the verifier walks once.
 */
__noinline int tl_unix_fastcgi_chunks(struct tl_unix *end, struct tl_text *text, __u64 address,
				      __u32 left)
{
	__u32 off = 0;
	__u32 i;

	if (!end || !text)
		return 0;
	if (left > TL_WENT_MAX)
		left = TL_WENT_MAX;
	for (i = 0; i < TL_CHUNKS_MAX && off < left; i++) {
		int went = tl_unix_fastcgi_chunk(end, text, address + off, left - off);

		if (went <= 0)
			return went;
		off += went & TL_WENT_MAX;
		tl_unix_fastcgi_event(&end->flow, text, went >> TL_WENT_BITS);
	}
	return off;
}

/*
 * Parses `length` bytes at `address` that are sent. A global function, which the verifier walks once,
 * and not for each turn of the loop that calls it.
 */
__noinline int tl_unix_range(struct tl_unix *end, struct tl_text *text, __u64 address, __u32 length)
{
	__u32 off = 0;
	__u32 i;
	int went;

	if (!end || !text)
		return 0;
	for (i = 0; i < TL_RANGES && off < length; i++) {
		if (end->protocol == TL_UNIX_FASTCGI)
			went = tl_unix_fastcgi_chunks(end, text, address + off, length - off);
		else
			went = tl_memory_chunks(&end->flow, text, address + off, length - off,
						TL_OUT);
		if (!went)
			return 0;
		if (went < 0)
			break;
		off += (__u32)went;
	}
	if (off < length)
		tl_unix_not_http(&end->flow, text);
	return 0;
}

/*
 * Parses the bytes from number `from` up to `to` of those that the current system call sends.
 * Returns the number of the first that it has not seen. A global function, to have a stack of its
 * own.
 */
__noinline int tl_unix_parse(struct tl_unix *end, struct tl_text *text, __u32 from, __u32 to)
{
	struct tl_buffers buffers = {};
	struct tl_vector vector;
	__u32 at = 0, low, high;
	__u32 i;

	if (!end || !text || !tl_read_buffers(&buffers))
		return 0;
	vector.at = buffers.at;
	vector.length = buffers.length;
	if (!buffers.vector)
		buffers.length = 1;
	for (i = 0; i < TL_VECTORS && i < buffers.length && at < to; i++) {
		if (buffers.vector && !tl_read_vector(&buffers, i, &vector))
			break;
		if (vector.length > to - at)
			vector.length = to - at;
		low = from > at ? from - at : 0;
		high = vector.length;
		if (low < high)
			tl_unix_range(end, text, vector.at + low, high - low);
		at += high;
	}
	return at;
}

/* Bytes were sent that no program could see. */
static __always_inline void tl_unix_unseen(struct tl_unix *end, __u32 bytes)
{
	struct tl_http *http = &end->flow.out;

	if (!bytes || http->state >= TL_HTTP_UNTIL_CLOSE)
		return;
	if (end->protocol == TL_UNIX_FASTCGI) {
		if (tl_fastcgi_ahead(http, &end->fastcgi, bytes))
			return;
		tl_unix_count(&end->flow, TL_UNIX_UNSEEN);
		http->state = TL_HTTP_LOST;
		return;
	}
	/* the last byte of a body ends the message: that is told by the parser */
	if ((http->state == TL_HTTP_BODY || http->state == TL_HTTP_CHUNK_DATA) &&
	    bytes <= http->remain) {
		http->remain -= bytes;
		tl_http_seen(http, bytes);
		return;
	}
	tl_unix_count(&end->flow, TL_UNIX_UNSEEN);
	http->state = TL_HTTP_LOST;
}

/* The body has ended with bytes that no program could see. */
static __always_inline void tl_unix_body_ends(struct tl_unix *end, struct tl_text *text)
{
	struct tl_http *http = &end->flow.out;

	if (http->remain || end->protocol == TL_UNIX_FASTCGI)
		return;
	if (http->state == TL_HTTP_CHUNK_DATA)
		http->state = TL_HTTP_CHUNK_END;
	else if (http->state == TL_HTTP_BODY)
		tl_memory_event(&end->flow, text, TL_OUT, TL_FEED_MESSAGE);
}

/* The exchange of a connection ends at both ends, first at the server's. */
static __always_inline void tl_unix_ends_exchange(struct tl_unix *server, struct tl_unix *client,
						  struct tl_text *text, __u32 status, __u32 end)
{
	if (server && server->flow.exchange.flags & TL_EXCHANGE_ACTIVE)
		tl_flow_ends(&server->flow, text, status, end);
	/* no program sees when a Unix socket ends */
	if (server)
		tl_work_ends(server->flow.endpoints.socket);
	if (client->flow.exchange.flags & TL_EXCHANGE_ACTIVE)
		tl_flow_ends(&client->flow, text, status, end);
	client->arrived = 0;
}

/* The connection ends: in the middle of an exchange, or this is how its answer ends. */
__noinline int tl_unix_closes(struct tl_unix *server, struct tl_unix *client, struct tl_text *text)
{
	if (server)
		tl_unix_gives_up(server);
	if (!client || !text || !(client->flow.exchange.flags & TL_EXCHANGE_ACTIVE))
		return 0;
	if (server && server->flow.out.state == TL_HTTP_UNTIL_CLOSE)
		tl_unix_ends_exchange(server, client, text, server->flow.out.status,
				      TL_END_CLOSE_DELIMITED);
	else
		tl_unix_ends_exchange(server, client, text, 0, TL_END_CLOSED);
	return 0;
}

/* The server has written: has it ended its answer? */
static __always_inline void tl_unix_has_answered(struct tl_unix *server, struct tl_unix *client,
						 struct tl_text *text)
{
	struct tl_http *http = &server->flow.out;

	if (server->flow.role == TL_ROLE_OFF)
		client->flow.role = TL_ROLE_OFF;
	if (client->flow.role == TL_ROLE_OFF ||
	    (http->state == TL_HTTP_START && http->status >= 200)) {
		if (client->flow.out.state == TL_HTTP_START)
			client->received = 1;
		tl_unix_ends_exchange(server, client, text, http->status, TL_END_COMPLETE);
		http->status = 0;
		if (client->flow.flags & TL_FLOW_PIPELINED)
			client->flow.role = TL_ROLE_OFF;
	}
	client->flow.in.state = http->state;
	client->flow.in.status = http->status;
}

/* The client writes what may be the start of a request, while the last answer is not complete. */
static __always_inline void tl_unix_begins_again(struct tl_unix *server, struct tl_unix *client,
						 struct tl_text *text)
{
	struct tl_http *http = &client->flow.out;

	if (http->state == TL_HTTP_LOST) {
		if (client->flow.flags & TL_FLOW_PIPELINED ||
		    (client->flow.exchange.flags & TL_EXCHANGE_ACTIVE &&
		     client->flow.in.state < TL_HTTP_UNTIL_CLOSE) ||
		    !tl_unix_starts())
			return;
		tl_http_restart(http);
		__builtin_memset(&client->fastcgi, 0, sizeof(client->fastcgi));
	}
	if (http->state != TL_HTTP_START)
		return;
	if (server)
		tl_unix_waits(server, server->sent + server->parsed, TL_WAITS);
	if (client->flow.in.state < TL_HTTP_UNTIL_CLOSE)
		return;
	tl_unix_ends_exchange(server, client, text, 0, TL_END_CLOSED);
	tl_http_restart(&client->flow.in);
	if (server) {
		tl_http_restart(&server->flow.out);
		__builtin_memset(&server->fastcgi, 0, sizeof(server->fastcgi));
	}
}

/* The client has written: has a request begun? */
static __always_inline void tl_unix_has_asked(struct tl_unix *server, struct tl_unix *client,
					      __u64 before)
{
	if (client->flow.flags & TL_FLOW_PIPELINED) {
		/* which of its requests the server reads next is not known */
		tl_unix_take(&client->arrived);
		if (server && server->flow.exchange.request && !server->ahead) {
			tl_request_end(server->flow.exchange.request);
			server->flow.exchange.request = 0;
		}
	}
	if (client->flow.exchange.start_ns == before)
		return;
	tl_unix_tell(&client->arrived);
	if (!server)
		return;
	server->flow.out.status = 0;
	server->received = 1;
}

/* Parses what the current thread sends; see struct tl_unix. `sent`: -1 before it is sent. */
static __always_inline void tl_unix_writes(struct tl_unix *end, struct tl_text *text, int sent)
{
	__u32 seen = end->parsed;

	if (sent < 0) {
		seen = tl_unix_parse(end, text, end->unsent, TL_AHEAD);
		end->parsed = seen > end->unsent ? seen : end->unsent;
		end->unsent = 0;
		return;
	}
	if ((__u32)sent > seen && seen)
		seen = tl_unix_parse(end, text, seen, sent);
	if ((__u32)sent > seen) {
		tl_unix_unseen(end, sent - seen);
		tl_unix_body_ends(end, text);
	}
}

/*
 * Before the current thread's bytes are parsed: `client` writes, or `server` where `answers`. This
 * and tl_unix_after() are global functions beside the parser, not around it: all that are one in
 * another have 512 bytes of stack.
 */
__noinline int tl_unix_before(struct tl_unix *client, struct tl_unix *server, struct tl_text *text,
			      bool answers)
{
	if (!client || !text)
		return 0;
	client->began = client->flow.exchange.start_ns;
	if (!answers) {
		tl_work_writes();
		tl_unix_begins_again(server, client, text);
		return 0;
	}
	if (!server)
		return 0;
	tl_thread_answers(&server->flow);
	tl_responds(&server->flow);
	server->flow.out.flags |= TL_HTTP_RESPONSE;
	server->flow.exchange.method = client->flow.exchange.method;
	server->protocol = client->protocol;
	return 0;
}

/* When they are parsed: acts on what has begun or ended. */
__noinline int tl_unix_after(struct tl_unix *client, struct tl_unix *server, struct tl_text *text,
			     bool answers)
{
	if (!client || !text)
		return 0;
	if (answers) {
		if (server)
			tl_unix_has_answered(server, client, text);
		return 0;
	}
	if (client->flow.flags & TL_FLOW_ASKS)
		tl_unix_asks(&client->flow, text);
	tl_unix_has_asked(server, client, client->began);
	return 0;
}

static __always_inline void tl_unix_end_writes(struct tl_unix *end, struct tl_unix *other,
					       struct tl_text *text, int sent)
{
	if (end->flow.role == TL_ROLE_CLIENT) {
		tl_unix_before(end, other, text, false);
		tl_unix_writes(end, text, sent);
		tl_unix_after(end, other, text, false);
	} else {
		/* while it sends: when the send returns, the next request may have come already */
		if (sent < 0)
			tl_unix_answers(end, other, text);
		tl_unix_before(other, end, text, true);
		tl_unix_writes(end, text, sent);
		tl_unix_after(other, end, text, true);
	}
}

#endif
