// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * io/restore.bpf.c - part of the group `observe`: for which request a thread writes to a connection
 * that sk_msg does not see. It is an object of its own, since older kernels refuse it.
 */
#include "evidence/find.h"
#include "io/answer.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * An HTTP call on a connection outside the sockhash, which is older than the agent or has left. The
 * packet was seen without its thread; this program sees the thread. The call gets no header, but
 * its span gets a parent, and the request has made a call.
 */
static __always_inline void tl_call_without_header(struct tl_flow *flow, struct tl_thread *thread)
{
	struct tl_parent parent = {};
	struct tl_trust *trust;
	bool first = flow->flags & TL_FLOW_FIRST;
	int refused;

	/* tl_by_writer() has told: the header has left before, and another thread may send the body */
	if (!tl_is_compat())
		return;
	if (!(flow->exchange.flags & TL_EXCHANGE_ACTIVE) || flow->caller ||
	    flow->flags & TL_FLOW_ASKED)
		return;
	flow->flags |= TL_FLOW_ASKED;
	trust = tl_trust_now();
	refused = tl_ask(flow, thread, trust, first, &parent);
	refused = tl_thread_calls(flow, thread, trust, first, refused, &parent);
	flow->tid = TL_READ(tl_current_task(), pid);
	if (refused >= 0)
		return;
	flow->caller = parent.key;
	tl_settle(parent.key, true);
	if (flow->exchange.evidence != TL_EVIDENCE_NONE)
		return;
	__builtin_memcpy(flow->exchange.context.trace_id, parent.trace_id, 16);
	__builtin_memcpy(flow->exchange.parent_span_id, &parent.key, 8);
	flow->exchange.context.trace_flags = parent.trace_flags;
	flow->exchange.evidence = parent.evidence;
	if (parent.likely)
		flow->exchange.flags |= TL_EXCHANGE_LIKELY;
	tl_count_parent(parent.evidence);
}

/*
 * The thread has written to the connection of `flow`. For a connection that does not speak HTTP (a
 * database, a cache) the thread's request is kept: when the answer is read, that request is the
 * thread's again. Whether an answer is complete is not known. So another request replaces the kept
 * one only when that has ended.
 */
static __always_inline void tl_thread_sends(struct tl_flow *flow, struct tl_thread *thread)
{
	struct tl_parent parent = {};
	struct tl_trust *trust;
	__u64 key = 0;

	if (!(flow->flags & TL_FLOW_OPAQUE)) {
		if (flow->role == TL_ROLE_CLIENT && !(flow->flags & TL_FLOW_ENROLLED))
			tl_call_without_header(flow, thread);
		return;
	}
	trust = tl_trust_now();
	/* in nginx a timer may have written: what follows the answer would be taken for proven */
	if (tl_thread_parent(thread, trust, 0, &parent) < 0 &&
	    !(parent.likely && trust->kind != TL_PROGRAM_UNKNOWN))
		key = parent.key;
	flow->caller = key;
	if (flow->writer != key) {
		if (flow->writer && bpf_map_lookup_elem(&tl_requests, &flow->writer))
			flow->caller = 0;
		else if (!flow->writer && !(flow->flags & TL_FLOW_ANSWERED))
			flow->caller = 0;
	}
	flow->writer = key;
	flow->flags &= ~TL_FLOW_ANSWERED;
	/* the request waits for an answer now, and is open again when that is read */
	if (flow->caller)
		tl_settle(flow->caller, false);
}

/* The current thread has written `bytes` to `sk`, or has got an error, which is negative. */
static __always_inline int tl_sends(struct sock *sk, int bytes)
{
	struct tl_thread *thread;
	struct tl_flow *flow;

	/* Unix sockets: tl_unix_sent() */
	if (sk->sk_type != TL_SOCK_STREAM || sk->__sk_common.skc_family == TL_AF_UNIX)
		return 0;
	flow = TL_FLOW_FIND(sk, TL_COOKIE(sk));
	if (flow && flow->role == TL_ROLE_SERVER) {
		tl_answers(sk, flow, bytes);
		return 0;
	}
	if (bytes <= 0)
		return 0;
	thread = tl_thread_now();
	if (flow)
		tl_thread_sends(flow, thread);
	tl_thread_acts(thread);
	return 0;
}

#ifdef TL_FEXIT
SEC("fexit/inet_sendmsg")
int BPF_PROG(tl_sent, struct socket *socket, struct msghdr *message, size_t size, int bytes)
{
	return tl_sends(socket->sk, bytes);
}

SEC("fexit/inet6_sendmsg")
int BPF_PROG(tl_sent_6, struct socket *socket, struct msghdr *message, size_t size, int bytes)
{
	return tl_sends(socket->sk, bytes);
}
#else
SEC("tp_btf/sock_send_length")
int BPF_PROG(tl_sent, struct sock *sk, int bytes, int flags)
{
	return tl_sends(sk, bytes);
}
#endif
