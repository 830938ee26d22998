/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * evidence/connect.h - a connection is being made: by whom, and during which request.
 */
#ifndef THROUGHLINE_CONNECT_H
#define THROUGHLINE_CONNECT_H

#include "evidence/context.h"

/*
 * Programs known to call FIONREAD late, when an answer fills their buffer: learning it then would be
 * too late. Others are learned (tl_learn_fionread).
 */
static __always_inline bool tl_calls_fionread(struct task_struct *task)
{
	char name[16] = {};
	__u64 word;

	BPF_CORE_READ_INTO(&name, task, group_leader, comm);
	word = *(__u64 *)name;
	switch (word & 0xffffffffffffULL) { /* six bytes: up to five letters and the end */
	case 0x00786e69676eULL: /* nginx */
	case 0x006569676e61ULL: /* angie */
		return true;
	}
	return (word & 0xffffffffffULL) == 0x006176616aULL || /* java */
	       (word & 0xffffffffffffffULL) == 0x0074656e746f64ULL || /* dotnet */
	       word == 0x747365726e65706fULL || /* openrest(y) */
	       word == 0x647074746867696cULL; /* lighttpd */
}

static __always_inline __u64 tl_cgroup_of(struct task_struct *task)
{
#ifdef TL_LEGACY
	return BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
#else
	return task->cgroups->dfl_cgrp->kn->id;
#endif
}

/* Since Linux 5.6, where the kernel is built with it. */
struct tcp_sock___mptcp {
	bool is_mptcp;
} __attribute__((preserve_access_index));

/* Is the socket a path of a Multipath TCP socket, which the application has? */
static __always_inline bool tl_is_mptcp(struct tcp_sock *tcp)
{
	struct tcp_sock___mptcp *path = (void *)tcp;

	return bpf_core_field_exists(path->is_mptcp) && path->is_mptcp;
}

/*
 * The current thread connects. Each group that is there calls this, in either order: the first finds
 * the request, since finding it settles it.
 */
static __always_inline void tl_connect(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct task_struct *task = tl_current_task();
	struct tl_parent parent;
	struct tl_thread *thread;
	struct tl_conn *conn;
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	__u64 cgroup_id = tl_cgroup_of(task);
	int refused;

	if (!tcp || !tl_traced(cgroup_id))
		return;
	conn = TL_CONN_MAKE(sk, bpf_get_socket_cookie(ops));
	if (!conn) {
		tl_count(TL_FULL_STORAGE);
		return;
	}
	if (tl_config.fionread_broken && tl_calls_fionread(task))
		conn->flags |= TL_CONN_LEAVES;
	/* a socket may connect more than once: each time it begins at another sequence number */
	if (conn->flags & TL_CONN_CONNECTED && conn->out.next_seq == tcp->write_seq)
		return;
	conn->flags |= TL_CONN_CONNECTED;
	if (tl_is_mptcp(tcp))
		conn->flags |= TL_CONN_MPTCP;
	conn->out.next_seq = tcp->write_seq;
	conn->socket = bpf_get_socket_cookie(ops);
	conn->role = TL_ROLE_CLIENT;
	conn->cgroup_id = cgroup_id;
	conn->pid = TL_READ(task, tgid);
	conn->born = tl_born(TL_READ(task, group_leader));
	thread = tl_thread_now();
	refused = tl_thread_parent(thread, &parent);
	if (refused < 0) {
		conn->connect = parent.key;
		tl_settle(parent.key, false);
	} else {
		tl_unattributed(thread, refused);
	}
}

#endif
