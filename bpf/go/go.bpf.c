// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * go/go.bpf.c - group `go`: which request each goroutine works for, and requests that the network
 * groups cannot read (docs/operator/go.md).
 *
 *   runtime.newproc1                            a goroutine starts another
 *
 * The probes in libraries are in go/http1.h, go/http2.h and go/grpc.h.
 *
 * Functions are probed where they begin, never where they return: a return probe writes into a
 * stack that Go moves. Arguments are in the registers of Go's ABIInternal (Go 1.17 and later): AX,
 * BX, CX, DI, SI, and the current goroutine in R14. The programs only read the memory of the
 * process.
 */
#include "go/grpc.h"
#include "go/http1.h"
#include "go/http2.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * newproc1(fn *funcval, callergp *g, …). It runs on the stack of a processor, and R14 is that
 * processor's own goroutine. The new goroutine gets the next number that its P has in store, or the
 * first of 16 that the P fetches.
 */
SEC("uprobe")
int tl_go_starts_another(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_unit *parent, child = {};
	struct tl_go_first first = {};
	__u64 key, p, stored[2] = {};
	__u32 index;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	parent = tl_go_works(binary, TL_GO_ARG2(ctx));
	if (!parent || !tl_go_inherits(binary, index, TL_GO_ARG1(ctx), PT_REGS_IP(ctx)))
		return 0;
	if (parent->depth >= TL_GO_DEPTH_MAX) {
		tl_count(TL_GO_TOO_DEEP);
		return 0;
	}
	child.request = parent->request;
	child.depth = parent->depth + 1;
	p = tl_user_word(tl_user_word(TL_GO_G(ctx) + binary->g_m) + binary->m_p);
	if (!p || bpf_probe_read_user(&stored[0], 8, (void *)(p + binary->p_goidcache)) ||
	    bpf_probe_read_user(&stored[1], 8, (void *)(p + binary->p_goidcacheend))) {
		tl_count(TL_GO_CHILD_UNKNOWN);
		return 0;
	}
	if (stored[0] < stored[1]) {
		key = tl_process_key(stored[0]);
		bpf_map_update_elem(&tl_units, &key, &child, BPF_ANY);
		return 0;
	}
	if (binary->g_parent_goid == TL_GO_UNKNOWN) {
		tl_count(TL_GO_CHILD_UNKNOWN);
		return 0;
	}
	first.p = p;
	first.child = child;
	key = tl_process_key(tl_unit_number(TL_GO_ARG2(ctx), binary->g_goid));
	bpf_map_update_elem(&tl_go_firsts, &key, &first, BPF_ANY);
	return 0;
}
