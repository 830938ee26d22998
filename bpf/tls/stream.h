/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* tls/stream.h - what a process reads and writes inside of a TLS connection. */
#ifndef THROUGHLINE_TLS_STREAM_H
#define THROUGHLINE_TLS_STREAM_H

#define TL_MEMORY_LOST TL_TLS_LOST

#include "evidence/find.h"
#include "tls/calls.h"
#include "trace/memory.h"

/* The current thread writes a call inside of TLS. A global function, to have a stack of its own. */
__noinline int tl_tls_asks(TL_FLOW)
{
	TL_TAKE_FLOW(flow, text);
	struct tl_parent parent;
	bool found;

	if (!flow || !text)
		return 0;
	found = tl_find_parent(flow, &parent);
	tl_flow_calls(flow, text, found ? &parent : NULL);
	return 0;
}

static __always_inline void tl_tls_call(struct tl_flow *flow, struct tl_text *text)
{
	tl_tls_asks(TL_GIVE_FLOW(flow, text));
}

/* A global function, which the verifier walks once. */
__noinline int tl_memory_event(TL_FLOW, __u32 direction, __u32 what)
{
	TL_TAKE_FLOW(flow, text);

	if (flow && text && what != TL_FEED_MORE)
		tl_stream_event(flow, text, direction & 1, what, tl_tls_call);
	return 0;
}

static __always_inline void tl_tls_stream(struct tl_flow *flow, struct tl_text *text, __u64 address,
					  __u64 length, __u32 direction)
{
	if (!text || !tl_memory_parse(flow, text, address, length, direction))
		return;
	if (flow->flags & TL_FLOW_USED) {
		tl_count(TL_TLS_LOST);
		tl_http_of(flow, direction)->state = TL_HTTP_LOST;
		return;
	}
	if (!(flow->flags & TL_FLOW_OPAQUE))
		tl_count(TL_TLS_NOT_HTTP);
	flow->flags |= TL_FLOW_OPAQUE;
	if (tl_is_http2(text))
		flow->role = TL_ROLE_OFF;
	else
		tl_guess_again(flow);
}

/*
 * The requests of the connection are LOST: may another one begin? Not before the last one is
 * answered.
 */
static __always_inline bool tl_tls_may_begin(const struct tl_flow *flow,
					     const struct tl_http *response)
{
	if (flow->flags & TL_FLOW_PIPELINED)
		return false;
	return !(flow->exchange.flags & TL_EXCHANGE_ACTIVE) ||
	       response->state >= TL_HTTP_UNTIL_CLOSE;
}

/*
 * Are the bytes that the process reads or writes to be parsed? The first bytes that look like a
 * request decide: the connection is a server's where they are received, and a client's where they
 * are sent. A connection that is older than the agent may be in the middle of a message; a
 * connection may also not carry HTTP.
 */
static __always_inline bool tl_tls_concerns(struct tl_flow *flow, struct tl_text *text,
					    __u64 address, __u64 length, __u32 direction)
{
	__u8 asks = direction == TL_IN ? TL_ROLE_SERVER : TL_ROLE_CLIENT;
	struct tl_http *http = tl_http_of(flow, direction);
	bool lost = flow->role == asks && http->state == TL_HTTP_LOST;
	__u8 start[4] = {};
	__u32 n = length < 4 ? length : 4;

	if (flow->role == TL_ROLE_OFF || !n)
		return false;
	if (flow->role == asks && !lost)
		return true;
	if (flow->role != TL_ROLE_UNKNOWN && !lost && flow->flags & TL_FLOW_USED)
		return true;
	if (lost && !tl_tls_may_begin(flow, tl_http_of(flow, !direction)))
		return false;
	if (bpf_probe_read_user(start, tl_length(n, 4), (void *)address) ||
	    !tl_begins_request(start, n))
		return flow->role != TL_ROLE_UNKNOWN && !lost;
	if (lost) {
		if (flow->exchange.flags & TL_EXCHANGE_ACTIVE)
			tl_flow_ends(flow, text, 0, TL_END_CLOSED);
		tl_http_restart(http);
		return true;
	}
	if (flow->role != TL_ROLE_UNKNOWN)
		tl_guess_again(flow);
	flow->role = asks;
	return true;
}

/* The thread is about to send these bytes. A global function, which the verifier walks once. */
__noinline int tl_tls_sends(TL_FLOW, __u64 address, __u64 length)
{
	TL_TAKE_FLOW(flow, text);
	struct tl_outgoing *out;
	__u64 span, shown;
	__u32 tid;

	if (!flow)
		return 0;
	shown = flow->writer;
	flow->writer = 0;
	if (!tl_tls_concerns(flow, text, address, length, TL_OUT))
		return 0;
	span = tl_key(flow->exchange.context.span_id);
	if (flow->role == TL_ROLE_SERVER) {
		tl_thread_answers(flow);
		tl_responds(flow);
		flow->out.flags |= TL_HTTP_RESPONSE;
	} else {
		tl_work_writes();
		if (shown)
			tl_work_recalls(shown);
	}
	tl_tls_stream(flow, text, address, length, TL_OUT);
	if (flow->role != TL_ROLE_CLIENT || !(flow->exchange.flags & TL_EXCHANGE_ACTIVE) ||
	    span == tl_key(flow->exchange.context.span_id) ||
	    flow->out.flags & TL_HEADER_HAS_TRACEPARENT)
		return 0;
	/* a call has begun: it is what the thread sends next */
	tid = tl_current_tid();
	tl_insert_zeros(&tl_thread_outs, &tid, BPF_ANY);
	out = bpf_map_lookup_elem(&tl_thread_outs, &tid);
	if (!out)
		return 0;
	out->socket = flow->endpoints.socket;
	out->context = flow->exchange.context;
	out->pending = 1;
	return 0;
}

/*
 * The thread hands `length` bytes to OpenSSL, which are about to be sent. They begin with bytes
 * that it handed over before and that were not sent: those were parsed already. OpenSSL demands
 * that they are the same bytes, but their number may differ.
 */
static __always_inline void tl_tls_write(struct tl_flow *flow, struct tl_tls_call *call,
					 __u64 length)
{
	__u64 address = call->buffer;
	__u32 before = flow->unsent;

	flow->unsent = 0;
	call->parsed = before > length ? before : length;
	if (before < length)
		tl_tls_sends(TL_GIVE_FLOW(flow, TL_TLS_TEXT(flow)), address + before,
			     length - before);
}

/*
 * The connection has an answer, and no call of it is under way: the call was not seen. That is so
 * while the kernel detaches the probes of an agent that was killed, one after the other. What is
 * known of the connection's last call says nothing about this one: by now another thread may use the
 * connection for another request, or another connection has its SSL.
 */
static __always_inline void tl_tls_missed_call(struct tl_flow *flow)
{
	flow->caller = 0;
	flow->tid = 0;
}

/* The thread has got `length` decrypted bytes. */
static __always_inline void tl_tls_read(struct tl_flow *flow, __u64 address, __u64 length)
{
	struct tl_text *text = TL_TLS_TEXT(flow);
	struct tl_thread *thread;
	__u64 before, key;
	__u8 evidence;

	if (!tl_tls_concerns(flow, text, address, length, TL_IN))
		return;
	before = flow->exchange.request;
	if (flow->role == TL_ROLE_CLIENT) {
		/* the server speaks first: this is not HTTP */
		if (!(flow->flags & TL_FLOW_USED))
			return;
		flow->in.flags |= TL_HTTP_RESPONSE;
		if (!(flow->exchange.flags & TL_EXCHANGE_ACTIVE))
			tl_tls_missed_call(flow);
	}
	tl_tls_stream(flow, text, address, length, TL_IN);
	thread = tl_thread_now();
	if (thread)
		tl_leave_partial(thread);
	if (flow->role == TL_ROLE_SERVER) {
		key = flow->exchange.request;
		evidence = TL_EVIDENCE_THREAD;
		if (key != before && !flow->endpoints.socket)
			tl_count(TL_TLS_NO_SOCKET);
	} else {
		key = flow->caller;
		evidence = TL_EVIDENCE_RESTORE;
	}
	tl_thread_reads(flow, thread, key, evidence, flow->in.state == TL_HTTP_START, NULL);
}

/*
 * Is a write to be parsed only when it has succeeded? A process that hands over bytes itself
 * (Node.js) may write a request before the handshake is done, and write it again after that. At the
 * first time there is no evidence for its parent: the socket is not known, and the thread is of an
 * event loop or works for no request.
 */
static __always_inline bool tl_tls_defer(const struct tl_flow *flow)
{
	struct tl_thread *thread;

	if (flow->endpoints.socket || flow->unsent)
		return false;
	thread = tl_thread_now();
	return !thread || !thread->current || thread->loop;
}

#endif
