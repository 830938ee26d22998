/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* runtimes/runtime.h - processes whose runtime keeps the current unit of work in its memory. */
#ifndef THROUGHLINE_RUNTIMES_RUNTIME_H
#define THROUGHLINE_RUNTIMES_RUNTIME_H

#include "core/abi.h"
#include "core/process.h"

/* By tl_process_id(). Written by the agent, or by a probe in the process. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct tl_runtime);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_runtimes SEC(".maps");

/*
 * Notes what was seen of a process. Its threads run on several processors: what one notes is not lost
 * where another one notes something else.
 */
static __always_inline void tl_runtime_note(struct tl_runtime *runtime, enum tl_runtime_flags flag)
{
#ifdef TL_LEGACY
	runtime->flags |= flag;
#else
	_Static_assert(__builtin_offsetof(struct tl_runtime, flags) ==
			       __builtin_offsetof(struct tl_runtime, born) + 7,
		       "the last byte of a word");
	__sync_fetch_and_or((__u64 *)&runtime->born, (__u64)flag << 56);
#endif
}

#ifndef TL_LEGACY
/* The same for what does not hold any more. */
static __always_inline void tl_runtime_unnote(struct tl_runtime *runtime,
					      enum tl_runtime_flags flag)
{
	__sync_fetch_and_and((__u64 *)&runtime->born, ~((__u64)flag << 56));
}
#endif

/*
 * Is the process known to run a server of threads? Not where tasks cannot be told from threads: that
 * server may be made to run tasks.
 */
static __always_inline bool tl_runs_workers(const struct tl_runtime *runtime)
{
	__u8 both = TL_RUNTIME_WORKERS | TL_RUNTIME_READABLE;

	return (runtime->flags & (both | TL_RUNTIME_SHARED)) == both;
}

enum tl_fits {
	TL_FITS_NOT = 0, /* the process executes another program */
	TL_FITS,
	TL_FITS_UNREADABLE, /* its word is in no page that is in memory now */
};

/*
 * Does the process, which began when the entry says, still execute what the entry was made for? Its
 * word tells that. A program cannot wait for the page of the word: it may be swapped out, since
 * nothing else uses it. So the word is read once, and then the number of programs tells.
 */
static __always_inline enum tl_fits tl_runtime_fits(struct tl_runtime *runtime)
{
	__u32 executed = TL_READ(tl_current_task(), self_exec_id) + 1;
	__u64 word = 0;

	if (!runtime->check_at || runtime->executed == executed)
		return TL_FITS;
	if (runtime->executed)
		return TL_FITS_NOT;
	if (bpf_probe_read_user(&word, sizeof(word), (void *)runtime->check_at))
		return TL_FITS_UNREADABLE;
	if (word != runtime->check)
		return TL_FITS_NOT;
	runtime->executed = executed;
	return TL_FITS;
}

/*
 * Does an entry hold for the current process, whose id is `pid`? enum tl_fits. A global function,
 * which verifiers walk once.
 */
__noinline int tl_runtime_state(__u32 pid)
{
	struct task_struct *leader = TL_READ(tl_current_task(), group_leader);
	struct tl_runtime *runtime = bpf_map_lookup_elem(&tl_runtimes, &pid);

	if (!runtime || !tl_is_born(leader, runtime->born))
		return TL_FITS_NOT;
	return tl_runtime_fits(runtime);
}

/* What is known of the runtime of the current process, or NULL. */
static __always_inline struct tl_runtime *tl_runtime_of(__u32 pid)
{
	if (tl_runtime_state(pid) != TL_FITS)
		return NULL;
	return bpf_map_lookup_elem(&tl_runtimes, &pid);
}

/*
 * There is no tl_runtime_of(): may the entry hold nevertheless? Then nothing is evidence, as where
 * it holds.
 */
static __always_inline bool tl_runtime_is_unreadable(__u32 pid)
{
	return tl_runtime_state(pid) == TL_FITS_UNREADABLE;
}

#ifndef TL_LEGACY
/* The id of the process that the current one is a child of (upper half), and its tl_born(). */
__noinline __u64 tl_parent_process(void)
{
	struct task_struct *parent = tl_current_task()->group_leader->real_parent->group_leader;

	return (__u64)tl_id_for_agent(parent) << 32 | tl_born(parent);
}
#endif

/*
 * The same for a process that has read a request. One that was forked by a server of threads, and has
 * executed nothing since, is such a server before the agent has looked at it: its memory has the
 * word that the entry of its parent names.
 */
static __always_inline struct tl_runtime *tl_runtime_of_reader(__u32 pid)
{
	struct tl_runtime *runtime = tl_runtime_of(pid);
#ifndef TL_LEGACY
	struct tl_runtime *known, fresh;
	__u64 parent, word = 0;
	__u32 parent_pid;

	if (runtime && (runtime->kind != TL_RUNTIME_PYTHON || runtime->check_at))
		return runtime;
	/* it executes another program than the one that has forked it */
	if (TL_READ(tl_current_task(), self_exec_id) != TL_READ(tl_current_task(), parent_exec_id))
		return runtime;
	parent = tl_parent_process();
	parent_pid = parent >> 32;
	known = bpf_map_lookup_elem(&tl_runtimes, &parent_pid);
	if (!known || !(known->flags & TL_RUNTIME_SETTLED) || (__u32)parent != known->born)
		return runtime;
	if (bpf_probe_read_user(&word, sizeof(word), (void *)known->check_at)) {
		/* an entry of its own tells that it may be such a server */
		if (runtime)
			return runtime;
	} else if (word != known->check) {
		return runtime;
	}
	fresh = *known;
	fresh.born = tl_process_born();
	fresh.executed = 0;
	fresh.flags = TL_RUNTIME_SETTLED | (runtime ? runtime->flags : 0);
	fresh.flags |= known->kind == TL_RUNTIME_RUBY ? known->flags : TL_RUNTIME_WORKERS;
	bpf_map_update_elem(&tl_runtimes, &pid, &fresh, BPF_ANY);
	runtime = tl_runtime_of(pid);
#endif
	return runtime;
}

#endif
