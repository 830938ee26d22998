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

/*
 * Is the process known to run a server of threads? Not where tasks cannot be told from threads: that
 * server may be made to run tasks.
 */
static __always_inline bool tl_runs_workers(const struct tl_runtime *runtime)
{
	__u8 both = TL_RUNTIME_WORKERS | TL_RUNTIME_READABLE;

	return (runtime->flags & both) == both;
}

/* What is known of the runtime of the current process, whose id is `pid`, or NULL. */
static __always_inline struct tl_runtime *tl_runtime_of(__u32 pid)
{
	struct task_struct *leader = TL_READ(tl_current_task(), group_leader);
	struct tl_runtime *runtime = bpf_map_lookup_elem(&tl_runtimes, &pid);

	if (!runtime || !tl_is_born(leader, runtime->born))
		return NULL;
	if (runtime->check_at && tl_user_word(runtime->check_at) != runtime->check)
		return NULL;
	return runtime;
}

/*
 * The same for a process that has read a request. One that was forked by a server of threads, and has
 * executed nothing since, is such a server before the agent has looked at it: its memory has the
 * word that the entry of its parent names.
 */
static __always_inline struct tl_runtime *tl_runtime_of_reader(__u32 pid)
{
	struct tl_runtime *runtime = tl_runtime_of(pid);
#ifndef TL_LEGACY
	struct task_struct *leader = tl_current_task()->group_leader;
	struct task_struct *parent = leader->real_parent;
	struct tl_runtime *known, fresh;
	__u32 parent_pid = parent->tgid;

	if (runtime && (runtime->kind != TL_RUNTIME_PYTHON || runtime->check_at))
		return runtime;
	known = bpf_map_lookup_elem(&tl_runtimes, &parent_pid);
	if (!known || !(known->flags & TL_RUNTIME_SETTLED) || !tl_is_born(parent, known->born) ||
	    tl_user_word(known->check_at) != known->check)
		return runtime;
	fresh = *known;
	fresh.born = tl_born(leader);
	fresh.flags = TL_RUNTIME_WORKERS | TL_RUNTIME_SETTLED | (runtime ? runtime->flags : 0);
	bpf_map_update_elem(&tl_runtimes, &pid, &fresh, BPF_ANY);
	runtime = bpf_map_lookup_elem(&tl_runtimes, &pid);
#endif
	return runtime;
}

#endif
