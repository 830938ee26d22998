/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* io/enrol.h - connections enter the sockhash, and leave it. */
#ifndef THROUGHLINE_IO_ENROL_H
#define THROUGHLINE_IO_ENROL_H

#include "evidence/connect.h"
#include "io/sockhash.h"

#define TL_ERRNO_EBUSY 16

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 65536);
	__type(key, __u64); /* socket cookie */
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_socks SEC(".maps");

static __always_inline void tl_enrol(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct tl_flow *flow = TL_FLOW_FIND(sk, bpf_get_socket_cookie(ops));
	struct tl_member_of process;
	__u64 cookie;
	int error;

	if (!flow || flow->role != TL_ROLE_CLIENT)
		return;
	tl_set_addresses(&flow->endpoints, sk);
	/* sk_msg does not see its sends; tl_egress counts its requests */
	if (flow->flags & TL_FLOW_MPTCP)
		return;
	if (ops->data_segs_out) {
		/* TCP Fast Open: the request was sent with the SYN, where tl_egress has seen it */
		if (!(flow->flags & TL_FLOW_USED))
			tl_count(TL_SKIP_NOT_ENROLLED);
		return;
	}
	/* sk_msg parses what is sent up to here: what of that waits in the socket is not parsed again */
	flow->sequence[TL_OUT].next = ops->snd_nxt;
	flow->sequence[TL_OUT].known = 1;
	cookie = bpf_get_socket_cookie(ops);
	process.pid = flow->pid;
	process.born = flow->born;
	if (tl_config.fionread_broken &&
	    bpf_map_update_elem(&tl_members, &cookie, &process, BPF_ANY)) {
		tl_count(TL_ENROL_FAILED);
		return;
	}
	error = bpf_sock_hash_update(ops, &tl_socks, &cookie, BPF_NOEXIST);
	if (error) {
		tl_count(error == -TL_ERRNO_EBUSY ? TL_ENROL_BUSY : TL_ENROL_FAILED);
		if (tl_config.fionread_broken)
			bpf_map_delete_elem(&tl_members, &cookie);
		return;
	}
	flow->flags |= TL_FLOW_ENROLLED;
	tl_count(TL_ENROLLED);
	/* tl_acknowledged() takes it out again where it is not HTTP */
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_RTT_CB_FLAG);
}

/*
 * Bytes that we have sent were acknowledged. The data of this packet is not in the socket yet, and
 * no answer comes before this. So a socket that leaves the sockhash here leaves it before its
 * process can call FIONREAD for an answer.
 */
static __always_inline void tl_acknowledged(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct tl_flow *flow = TL_FLOW_FIND(sk, bpf_get_socket_cookie(ops));
	bool http = flow && flow->role == TL_ROLE_CLIENT;
	bool leaves = false;
	__u64 cookie;

	if (http && !(flow->flags & TL_FLOW_USED))
		return;
	if (http && tl_config.fionread_broken) {
		leaves = flow->flags & TL_FLOW_LEAVES || tl_asks_fionread(flow->pid, flow->born);
		/* its process may call FIONREAD later: check again with the next acknowledgement */
		if (!leaves)
			return;
	}
	if (flow && flow->flags & TL_FLOW_ENROLLED && (leaves || flow->role == TL_ROLE_OFF)) {
		cookie = bpf_get_socket_cookie(ops);
		/* from here on tl_egress parses what it sends */
		flow->flags &= ~TL_FLOW_ENROLLED;
		if (!bpf_map_delete_elem(&tl_socks, &cookie))
			tl_count(leaves ? TL_EVICTED_FIONREAD : TL_EVICTED);
		if (tl_config.fionread_broken)
			bpf_map_delete_elem(&tl_members, &cookie);
	}
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_RTT_CB_FLAG);
}

#endif
