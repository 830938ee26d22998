// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * restore.bpf.c - part of group `observe` where the kernel allows it: which request has written to
 * a connection that does not speak HTTP. An object of its own, since older kernels refuse it.
 */
#include "context.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

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
	conn = bpf_sk_storage_get(&tl_conns, sk, NULL, 0);
	if (!conn || !(conn->flags & TL_CONN_OPAQUE))
		return 0;
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
