// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * io/restore.bpf.c - part of group `observe` where the kernel allows it: which request has written to
 * a connection that sk_msg does not see. An object of its own, since older kernels refuse it.
 */
#include "evidence/context.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * For which request was the first call on a connection made that we saw being made? As in
 * tl_find_parent(): for the one in which it was made. An event loop writes ticks later, when its thread
 * has read another: false, it is known or cannot be.
 */
static __always_inline bool tl_ask_thread(struct tl_conn *conn, struct tl_thread *thread,
					  struct tl_parent *parent, bool *known)
{
	*known = false;
	if (!(conn->flags & TL_CONN_FIRST) || !(conn->flags & TL_CONN_CONNECTED))
		return true;
	if (conn->connect && tl_take_parent(conn->connect, TL_EVIDENCE_CONNECT, parent) < 0) {
		*known = true;
		return false;
	}
	return !(thread && thread->loop);
}

/*
 * An HTTP call on a connection outside the sockhash (older than the agent, or it has left): the
 * packet was seen without its thread, which is here. The call carries no header, but its span gets
 * its parent, and the request has called.
 */
static __always_inline void tl_call_without_header(struct tl_conn *conn)
{
	struct tl_thread *thread;
	struct tl_parent parent;
	bool known;
	int refused;

	if (!(conn->flags & TL_CONN_ACTIVE) || conn->parent)
		return;
	thread = tl_thread_now();
	if (tl_ask_thread(conn, thread, &parent, &known)) {
		refused = tl_thread_parent(thread, &parent);
		known = refused < 0;
		if (!known)
			tl_unattributed(thread, refused);
	}
	if (!known)
		return;
	conn->parent = parent.key;
	tl_settle(parent.key, true);
	if (conn->evidence != TL_EVIDENCE_NONE)
		return;
	__builtin_memcpy(conn->trace_id, parent.trace_id, 16);
	__builtin_memcpy(conn->parent_span_id, &parent.key, 8);
	conn->trace_flags = parent.trace_flags;
	conn->evidence = parent.evidence;
	tl_count_parent(parent.evidence);
}

/*
 * The current thread has written to `sk`. For a connection that does not speak HTTP (a database, a
 * cache) it is remembered for which request, so that reading the answer restores it. Whether an
 * answer is complete cannot be seen; so the connection takes over another request only when the
 * one that wrote before has ended. The tracepoint exists from Linux 6.3 on.
 */
SEC("tp_btf/sock_send_length")
int BPF_PROG(tl_sent, struct sock *sk, int bytes, int flags)
{
	struct tl_parent parent;
	struct tl_conn *conn;
	__u64 key = 0;

	if (bytes <= 0)
		return 0;
	conn = TL_CONN_FIND(sk, TL_COOKIE(sk));
	if (!conn)
		return 0;
	if (!(conn->flags & TL_CONN_OPAQUE)) {
		if (conn->role == TL_ROLE_CLIENT && !(conn->flags & TL_CONN_ENROLLED))
			tl_call_without_header(conn);
		return 0;
	}
	if (tl_thread_parent(tl_thread_now(), &parent) < 0)
		key = parent.key;
	conn->parent = key;
	if (conn->writer != key) {
		if (conn->writer && bpf_map_lookup_elem(&tl_requests, &conn->writer))
			conn->parent = 0;
		else if (!conn->writer && !(conn->flags & TL_CONN_ANSWERED))
			conn->parent = 0;
	}
	conn->writer = key;
	conn->flags &= ~TL_CONN_ANSWERED;
	/* it waits for an answer now; that answer will tell who goes on */
	if (conn->parent)
		tl_settle(conn->parent, false);
	return 0;
}
