// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * foreign.bpf.c - another agent on the same host, for test_cotenancy.py: counts the packets of a
 * cgroup, and puts client sockets into a sockhash of its own before ours can.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} foreign_socks SEC(".maps");

/* 0: packets in, 1: packets out, 2: sockets enrolled, 3: refused, 4: sends seen */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 5);
	__type(key, __u32);
	__type(value, __u64);
} foreign_counts SEC(".maps");

static __always_inline int count(__u32 what)
{
	__u64 *value = bpf_map_lookup_elem(&foreign_counts, &what);

	if (value)
		__sync_fetch_and_add(value, 1);
	return 1;
}

SEC("cgroup_skb/ingress")
int foreign_in(struct __sk_buff *skb)
{
	return count(0);
}

SEC("cgroup_skb/egress")
int foreign_out(struct __sk_buff *skb)
{
	return count(1);
}

SEC("sockops")
int foreign_sockops(struct bpf_sock_ops *ops)
{
	__u64 cookie;

	if (ops->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		return 1;
	cookie = bpf_get_socket_cookie(ops);
	return count(bpf_sock_hash_update(ops, &foreign_socks, &cookie, BPF_NOEXIST) ? 3 : 2);
}

SEC("sk_msg")
int foreign_send(struct sk_msg_md *msg)
{
	count(4);
	return SK_PASS;
}
