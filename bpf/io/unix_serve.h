/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * io/unix_serve.h - the server's end of a Unix socket: it reads what the other end has parsed, or is
 * about to parse.
 */
#ifndef THROUGHLINE_IO_UNIX_SERVE_H
#define THROUGHLINE_IO_UNIX_SERVE_H

#include "io/unix.h"
#include "trace/begin.h"

/* Ends what the server has read ahead of the parser: it is no request, or none of its own. */
static __always_inline bool tl_unix_forgets(struct tl_unix *server)
{
	if (!tl_unix_moves(&server->ahead, TL_AHEAD_READ, TL_AHEAD_NOT))
		return false;
	tl_request_end(server->flow.exchange.request);
	server->flow.exchange.request = 0;
	server->flow.exchange.flags &= ~TL_EXCHANGE_READ;
	return true;
}

/*
 * The server answers or closes. What it has read ahead of the parser is given up; the other end is
 * told, which may be about to parse it. A global function, which the verifier walks once.
 */
__noinline int tl_unix_gives_up(struct tl_unix *server)
{
	__u32 i;

	if (!server)
		return 0;
	for (i = 0; i < TL_LOOKS; i++) {
		if (*(volatile __u32 *)&server->ahead == TL_AHEAD_NOT)
			return 0;
		if (tl_unix_forgets(server)) {
			tl_count(TL_UNIX_UNREAD);
			tl_unix_tell(&server->gone);
			return 0;
		}
	}
	if (tl_unix_moves(&server->ahead, TL_AHEAD_PARSED, TL_AHEAD_ANSWERED))
		tl_count(TL_UNIX_UNREAD);
	return 0;
}

/* The current thread serves what it has read or answers here. False: it is not traced. */
static __always_inline bool tl_unix_reader_now(struct tl_unix *server)
{
	struct tl_exchange *exchange = &server->flow.exchange;

	server->flow.cgroup_id = bpf_get_current_cgroup_id();
	server->flow.pid = 0;
	exchange->cgroup_id = server->flow.cgroup_id;
	exchange->pid = bpf_get_current_pid_tgid() >> 32;
	return tl_unix_traced(server->flow.cgroup_id);
}

/*
 * The server's process, which is in its exchange, has begun to read a request that is parsed: its
 * server span begins. A global function, to have a stack of its own.
 */
__noinline int tl_unix_serves(struct tl_unix *server, struct tl_unix *client, struct tl_text *text)
{
	struct tl_exchange *exchange, *call;
	__u32 pid;
	__u64 key;

	if (!server || !client || !text)
		return 0;
	exchange = &server->flow.exchange;
	call = &client->flow.exchange;
	if (!(call->flags & TL_EXCHANGE_ACTIVE))
		return 0;
	pid = exchange->pid;
	exchange->http_minor = call->http_minor;
	exchange->http_major = call->http_major;
	server->flow.flags |= TL_FLOW_USED;
	if (client->flow.flags & TL_FLOW_UNTRACED) {
		tl_begin_server(exchange, text, &server->flow.endpoints, client->flow.early_header);
		exchange->start_ns = call->start_ns;
	} else {
		tl_begin(exchange, text, TL_KIND_SERVER);
		exchange->start_ns = call->start_ns;
		__builtin_memcpy(exchange->context.trace_id, call->context.trace_id, 16);
		__builtin_memcpy(exchange->parent_span_id, call->context.span_id, 8);
		exchange->context.trace_flags = call->context.trace_flags;
		exchange->evidence = TL_EVIDENCE_UNIX;
		key = tl_key(exchange->context.span_id);
		tl_keep_request(exchange, text, key);
		exchange->request = key;
		tl_count(TL_PARENT_UNIX);
	}
	exchange->pid = pid;
	return 0;
}

/*
 * The current thread, which serves what comes on `server`, has read or answers. Begins the server
 * span of what has arrived and was parsed.
 */
static __always_inline bool tl_unix_takes(struct tl_unix *server, struct tl_unix *client,
					  struct tl_text *text)
{
	if (!tl_unix_take(&client->arrived))
		return false;
	tl_unix_take(&server->ahead);
	if (tl_unix_reader_now(server))
		tl_unix_serves(server, client, text);
	return true;
}

/*
 * The server answers: what it has not begun to read by now is taken. A global function, to have a
 * stack of its own.
 */
__noinline int tl_unix_answers(struct tl_unix *server, struct tl_unix *client, struct tl_text *text)
{
	if (server && client && text && !tl_unix_takes(server, client, text))
		tl_unix_gives_up(server);
	return 0;
}

/* The client's end completes the entry of what the server has read. */
static __always_inline void tl_unix_completes(struct tl_unix *server, struct tl_unix *client,
					      struct tl_text *text)
{
	struct tl_exchange *exchange = &server->flow.exchange;

	tl_unix_serves(server, client, text);
	if (tl_unix_moves(&server->ahead, TL_AHEAD_PARSED, TL_AHEAD_NOT))
		return;
	/* the server has answered, and has found no request that is served */
	exchange->flags &= ~TL_EXCHANGE_ACTIVE;
	tl_request_end(exchange->request);
	exchange->request = 0;
	tl_unix_take(&server->ahead);
}

/*
 * The client's end has parsed what it has sent. Has the server read the request already? It has
 * made a key for it then: see tl_unix_reads_ahead(). `text`: NULL where the client's end sends no
 * requests. A global function, to have a stack of its own.
 */
__noinline int tl_unix_parsed(struct tl_unix *server, struct tl_unix *client, struct tl_text *text)
{
	if (!server || !client)
		return 0;
	if (*(volatile __u32 *)&client->arrived && tl_unix_take(&server->gone)) {
		tl_unix_take(&client->arrived);
		client->flow.exchange.flags &= ~TL_EXCHANGE_ACTIVE;
		return 0;
	}
	if (*(volatile __u32 *)&server->ahead != TL_AHEAD_READ)
		return 0;
	if (!text || client->flow.role != TL_ROLE_CLIENT ||
	    client->flow.flags & TL_FLOW_PIPELINED) {
		tl_unix_forgets(server);
	} else if (tl_unix_take(&client->arrived)) {
		if (tl_unix_moves(&server->ahead, TL_AHEAD_READ, TL_AHEAD_PARSED))
			tl_unix_completes(server, client, text);
		else
			tl_unix_tell(&client->arrived);
	}
	return 0;
}

#endif
