// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * restore.bpf.c - part of group `observe` where the kernel allows it: which request has written to
 * a connection that sk_msg does not see. An object of its own, since older kernels refuse it.
 */
#include "context.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * For which request was the first call on a connection made that we saw being made? As in
 * tl_find_parent(): for the one in which it was made. An event loop writes ticks later, when its thread
 * has read another: false, it is known or cannot be.
 */
static __always_inline bool tl_ask_thread(struct tl_conn *conn, struct tl_thread *thread,
					  struct tl_request **request, __u64 *key)
{
	struct tl_request *found;

	*request = NULL;
	if (!(conn->flags & TL_CONN_FIRST) || !(conn->flags & TL_CONN_CONNECTED))
		return true;
	if (conn->connect) {
		*key = conn->connect;
		found = bpf_map_lookup_elem(&tl_requests, key);
		if (found && tl_parent_refused(found) < 0) {
			*request = found;
			return false;
		}
	}
	return !(thread && thread->loop);
}

/*
 * An HTTP call on a connection outside the sockhash (older than the agent, or it has left): the
 * packet was seen without its thread, which is here. The call carries no header, but its span gets
 * its parent, and the request has called.
 */
static __always_inline void tl_call_without_header(struct tl_conn *conn, __u32 tid)
{
	struct tl_request *request;
	struct tl_thread *thread;
	__u8 evidence = TL_EVIDENCE_CONNECT;
	__u64 key = 0;
	int refused;

	if (!(conn->flags & TL_CONN_ACTIVE) || conn->parent)
		return;
	thread = bpf_map_lookup_elem(&tl_threads, &tid);
	if (tl_ask_thread(conn, thread, &request, &key)) {
		request = tl_thread_request(thread, &key, &refused);
		if (!request || !thread) {
			tl_unattributed(thread, refused);
			return;
		}
		evidence = thread->evidence;
	}
	if (!request)
		return;
	conn->parent = key;
	request->fanout++;
	tl_request_settle(request);
	if (conn->evidence != TL_EVIDENCE_NONE)
		return;
	__builtin_memcpy(conn->trace_id, request->trace_id, 16);
	__builtin_memcpy(conn->parent_span_id, request->span_id, 8);
	conn->trace_flags = request->trace_flags;
	conn->evidence = evidence;
	if (evidence == TL_EVIDENCE_CONNECT)
		tl_count(TL_PARENT_CONNECT);
	else
		tl_count(evidence == TL_EVIDENCE_RESTORE ? TL_PARENT_RESTORE : TL_PARENT_THREAD);
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
	struct tl_conn *conn;
	struct tl_request *request;
	struct tl_thread *thread;
	__u32 tid = tl_current_tid();
	__u64 key = 0;
	int refused;

	if (bytes <= 0)
		return 0;
	conn = TL_CONN_FIND(sk, TL_COOKIE(sk));
	if (!conn)
		return 0;
	if (!(conn->flags & TL_CONN_OPAQUE)) {
		if (conn->role == TL_ROLE_CLIENT && !(conn->flags & TL_CONN_ENROLLED))
			tl_call_without_header(conn, tid);
		return 0;
	}
	thread = bpf_map_lookup_elem(&tl_threads, &tid);
	request = tl_thread_request(thread, &key, &refused);
	if (!request)
		key = 0;
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
	if (request && conn->parent)
		tl_request_settle(request);
	return 0;
}
