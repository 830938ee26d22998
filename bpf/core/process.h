/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* core/process.h - processes and threads: how they are told apart, and their memory. */
#ifndef THROUGHLINE_CORE_PROCESS_H
#define THROUGHLINE_CORE_PROCESS_H

#include "core/compat.h"
#include "core/settings.h"

#define TL_TICK_NS 10000000

/*
 * When a task began, as in /proc/PID/stat: in hundredths of a second since boot. The kernel gives
 * ids of threads and processes again; together with this time they are unique.
 */
static __always_inline __u32 tl_born(struct task_struct *task)
{
	return TL_READ(task, start_boottime) / TL_TICK_NS;
}

static __always_inline bool tl_is_born(struct task_struct *task, __u32 born)
{
	return TL_READ(task, start_boottime) - (__u64)born * TL_TICK_NS < TL_TICK_NS;
}

/*
 * Where a program follows a pointer in a task that it knows to be valid, verifiers before sorted BTF
 * look through all types of the kernel by name, up to four times: 2 ms for each time that they walk
 * it. So the functions that do are global ones, which are walked once for each program.
 */

/* When the current process began: in nanoseconds since boot. */
__noinline __u64 tl_process_began_ns(void)
{
	struct task_struct *leader = TL_READ(tl_current_task(), group_leader);

	return TL_READ(leader, start_boottime);
}

/* The same as tl_born() says it of its first thread. */
static __always_inline __u32 tl_process_born(void)
{
	return tl_process_began_ns() / TL_TICK_NS;
}

/*
 * The ids of the current process (upper half) and thread. Programs of the type cgroup_skb get the
 * helper for that in newer kernels only: Linux 6.1 refuses it.
 */
static __always_inline __u64 tl_current_ids(void)
{
	struct task_struct *task = tl_current_task();

	return (__u64)(__u32)TL_READ(task, tgid) << 32 | (__u32)TL_READ(task, pid);
}

#define TL_PID_NAMESPACES 8 /* one in another; the kernel allows 32 */

/*
 * The id that the agent knows a process by, whose first thread is `leader`: that of the agent's pid
 * namespace; 0 where the process is in none that the agent sees. On a host that is a container (LXC,
 * systemd-nspawn) this is not the kernel's own id.
 */
static __always_inline __u32 tl_id_for_agent(struct task_struct *leader)
{
	struct upid upid = {};
	struct pid *pid;
	__u32 level, i;

	if (!tl_config.pid_namespace)
		return TL_READ(leader, tgid);
	pid = BPF_CORE_READ(leader, thread_pid);
	level = BPF_CORE_READ(pid, level);
#pragma unroll 1
	for (i = 0; i < TL_PID_NAMESPACES && i <= level; i++) {
		if (bpf_probe_read_kernel(&upid, sizeof(upid),
					  __builtin_preserve_access_index(&pid->numbers[0]) + i))
			break;
		if (BPF_CORE_READ(upid.ns, ns.inum) == tl_config.pid_namespace)
			return upid.nr;
	}
	return 0;
}

/* The same of the current process: the key of what the agent tells of it. */
__noinline int tl_process_id(void)
{
	struct task_struct *leader = TL_READ(tl_current_task(), group_leader);

	return tl_id_for_agent(leader);
}

#define TL_PROCESS_SHIFT 42 /* process ids are below 2^22 */
#define TL_EXECUTED_SHIFT 36 /* numbers of units are below 2^36, as are addresses up to 1 TB */

/*
 * The key of something in a process: the number of a unit of work, or an address. The kernel gives
 * process ids again, and a process keeps its id when it executes another program (execve). So the
 * key also holds when the process began, and how many programs it has executed.
 */
__noinline __u64 tl_process_key(__u64 what)
{
	struct task_struct *task = tl_current_task(), *leader = TL_READ(task, group_leader);
	__u64 began = TL_READ(leader, start_time);

	began += TL_READ(task, self_exec_id) << TL_EXECUTED_SHIFT;
	return what ^ (began & ((1ULL << TL_PROCESS_SHIFT) - 1)) ^
	       tl_current_ids() >> 32 << TL_PROCESS_SHIFT;
}

static __always_inline __u32 tl_current_tid(void)
{
	return (__u32)tl_current_ids();
}

static __always_inline __u64 tl_cgroup_of(struct task_struct *task)
{
#ifdef TL_LEGACY
	return BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
#else
	return task->cgroups->dfl_cgrp->kn->id;
#endif
}

/*
 * A word of the current process's memory; 0 where there is none: the helper writes zeros then, and a
 * branch is a path for the verifier.
 */
static __always_inline __u64 tl_user_word(__u64 address)
{
	__u64 word = 0;

	bpf_probe_read_user(&word, sizeof(word), (void *)address);
	return word;
}

/*
 * The thread pointer. On x86-64 it is the address of the C library's struct pthread; on arm64 it is
 * that of two words behind it. A thread of arm64 sets it without the kernel, which knows it from the
 * thread's next wait on.
 */
static __always_inline __u64 tl_thread_pointer(void)
{
#if defined(__TARGET_ARCH_x86)
	return TL_READ(tl_current_task(), thread.fsbase);
#else
	return TL_READ((struct task_struct___arm64 *)tl_current_task(), thread.uw.tp_value);
#endif
}

/* Where the C library keeps the address of a thread's table of modules (dtv): from the thread pointer. */
#if defined(__TARGET_ARCH_x86)
#define TL_DTV_AT 8
#else
#define TL_DTV_AT 0
#endif

#endif
