/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* runtimes/runtime.h - processes whose runtime keeps the current unit of work in its memory. */
#ifndef THROUGHLINE_RUNTIMES_RUNTIME_H
#define THROUGHLINE_RUNTIMES_RUNTIME_H

#include "core/abi.h"
#include "core/process.h"

/* By process id. Written by the agent, or by a probe in the process. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct tl_runtime);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_runtimes SEC(".maps");

/* What is known of the runtime of the current process, whose id is `pid`, or NULL. */
static __always_inline const struct tl_runtime *tl_runtime_of(__u32 pid)
{
	struct task_struct *leader = TL_READ(tl_current_task(), group_leader);
	const struct tl_runtime *runtime = bpf_map_lookup_elem(&tl_runtimes, &pid);

	if (!runtime || !tl_is_born(leader, runtime->born))
		return NULL;
	if (runtime->check_at && tl_user_word(runtime->check_at) != runtime->check)
		return NULL;
	return runtime;
}

#endif
