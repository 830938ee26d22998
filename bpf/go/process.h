/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* go/process.h - processes that execute a Go program. */
#ifndef THROUGHLINE_GO_PROCESS_H
#define THROUGHLINE_GO_PROCESS_H

#include "core/settings.h"
#include "evidence/unit.h"
#include "go/registers.h"

_Static_assert(TL_UNIT_UNKNOWN == (int)TL_GO_UNKNOWN, "offsets of Go are offsets of units");

/* Where the programs of each binary keep what we read; index 0 is none. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TL_GO_BINARIES);
	__type(key, __u32);
	__type(value, struct tl_go_binary);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_go_binaries SEC(".maps");

static __always_inline const struct tl_go_binary *tl_go_at(__u32 index)
{
	return index ? bpf_map_lookup_elem(&tl_go_binaries, &index) : NULL;
}

/*
 * The binary that the current thread executes; its index is in the probe's cookie. NULL when its
 * cgroup is not traced. Also NULL when the function is about to grow its stack and begin again: the
 * probe is on the branch that checks whether the stack is large enough.
 */
static __always_inline const struct tl_go_binary *tl_go_enter(struct pt_regs *ctx, __u32 *index)
{
	struct tl_unit_layout *known, layout = {};
	const struct tl_go_binary *binary;
	__u64 process;
	__u32 again;

	tl_own_stack(ctx);
	if (!tl_probe_traced())
		return NULL;
	*index = bpf_get_attach_cookie(ctx);
	if (*index & TL_GO_RESTARTS && TL_GO_GROWS(ctx))
		return NULL;
	again = *index & TL_GO_AGAIN;
	*index &= TL_GO_BINARIES - 1;
	binary = tl_go_at(*index);
	process = tl_process_key(0);
	known = bpf_map_lookup_elem(&tl_unit_layouts, &process);
	if (binary && (!known || (known->index != *index && !again))) {
		layout.index = *index;
		layout.number_at = binary->g_goid;
		bpf_map_update_elem(&tl_unit_layouts, &process, &layout, BPF_ANY);
	}
	return binary;
}

#endif
