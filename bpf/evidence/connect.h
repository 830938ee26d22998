/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* evidence/connect.h - a connection is being made: by which process, and during which request. */
#ifndef THROUGHLINE_EVIDENCE_CONNECT_H
#define THROUGHLINE_EVIDENCE_CONNECT_H

#include "core/fionread.h"
#include "evidence/thread.h"

/*
 * The current thread connects. Both `headers` and `packets` call this, in either order. Only the
 * first call finds the request, since that also settles it.
 */
static __always_inline void tl_connect(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct task_struct *task = tl_current_task();
	struct tl_parent parent;
	struct tl_thread *thread;
	struct tl_trust *trust;
	struct tl_flow *flow;
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	__u64 cgroup_id = tl_cgroup_of(task);
	__u64 request;
	int refused;

	if (!tcp || !tl_traced(cgroup_id))
		return;
	flow = TL_FLOW_MAKE(sk, bpf_get_socket_cookie(ops));
	if (!flow) {
		tl_count(TL_FULL_STORAGE);
		goto acts;
	}
	if (tl_config.fionread_broken && tl_calls_fionread(task))
		flow->flags |= TL_FLOW_LEAVES;
	/* a socket may connect again: then it begins at another sequence number */
	if (flow->flags & TL_FLOW_CONNECTED && flow->sequence[TL_OUT].next == tcp->write_seq)
		return;
	flow->flags |= TL_FLOW_CONNECTED;
	if (tl_is_mptcp(tcp))
		flow->flags |= TL_FLOW_MPTCP;
	flow->sequence[TL_OUT].next = tcp->write_seq;
	flow->endpoints.socket = bpf_get_socket_cookie(ops);
	flow->role = TL_ROLE_CLIENT;
	flow->cgroup_id = cgroup_id;
	flow->pid = TL_READ(task, tgid);
	flow->born = tl_process_born();
	flow->tid = TL_READ(task, pid);
	request = tl_work_connects();
	if (request) {
		if (request != TL_PROXY_NOTHING)
			tl_settle(request, false);
		goto acts;
	}
	thread = tl_thread_now();
	if (!thread || tl_work_is_told())
		return;
	trust = tl_trust_now();
	refused = tl_thread_parent(thread, trust, 0, &parent);
	if (refused < 0) {
		flow->connect = parent.key;
		flow->likely = parent.likely;
		tl_settle(parent.key, false);
	} else {
		tl_unattributed(thread, trust, refused);
	}
acts:
	tl_acts_now();
}

#endif
