// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* The group `observe` with one program more, which every verifier refuses: it reads what it must not. */
#include "io/observe.bpf.c"

SEC("cgroup_skb/ingress")
int tl_refused(struct __sk_buff *skb)
{
	return *(volatile int *)(long)skb->len;
}
