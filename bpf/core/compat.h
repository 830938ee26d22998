/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * core/compat.h - differences between kernels, each with the version that ended it.
 *
 * Two objects are made of one source. The ordinary one needs Linux 5.15. With TL_LEGACY it is one
 * for older kernels, down to 5.10. The older one looks up in a hash map what the ordinary one
 * reaches through a pointer. The agent tries them in this order. They differ in:
 *
 *   what                                       since   instead
 *   global functions that take pointers        5.13    the socket's cookie, and look up again
 *   (e5069b9c23b3)
 *   bpf_sk_storage_get in tracing programs     5.11    hash maps by cookie
 *   (8e4597c627fb)
 *   bpf_get_current_task_btf (3ca1032ab7ab)    5.11    bpf_get_current_task
 *   bpf_task_pt_regs (dd6e10fbd9fb)            5.15    the top of the task's stack
 *
 * With TL_FEXIT the ordinary objects that need the tracepoints sk_data_ready, sock_send_length and
 * sock_recv_length (Linux 6.3) have a second form, for the begin and end of functions.
 */
#ifndef THROUGHLINE_CORE_COMPAT_H
#define THROUGHLINE_CORE_COMPAT_H

#include "core/kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define TL_AF_UNIX 1
#define TL_SOCK_STREAM 1

/*
 * Shows the verifier that `n` is between 1 and `max` (a power of two), for a helper that refuses 0.
 * `n` must be in that range already. Compilers turn `n < 1` into `n != 0`, from which verifiers
 * before Linux 6.8 learn nothing (d028f87517d6).
 */
static __always_inline __u32 tl_length(__u32 n, __u32 max)
{
	n--;
	asm volatile("%0 &= %1" : "+r"(n) : "i"(max - 1));
	return n + 1;
}

/*
 * What was read and written before is seen before what is read and written after. x86 keeps the order
 * of reads, and that of writes: there only the compiler has to. On arm64 an atomic addition that
 * returns the old value is a full barrier; its JIT knows them from Linux 5.18 on (1902472b4fa9), so
 * there are no objects for older kernels of arm64.
 */
static __always_inline void tl_order(void)
{
#if !defined(__TARGET_ARCH_x86)
	__u64 word = 0, old = __sync_fetch_and_add(&word, 1);

	asm volatile("" ::"r"(old));
#endif
	asm volatile("" ::: "memory");
}

/* The same where an access is volatile and so holds the compiler back: x86 needs nothing. */
static __always_inline void tl_order_weak(void)
{
#if !defined(__TARGET_ARCH_x86)
	tl_order();
#endif
}

/*
 * Takes a lock without waiting; two that try at once may both fail. It uses only addition: an
 * atomic exchange needs Linux 5.12 (5ffa25502b5a).
 */
static __always_inline bool tl_take(__u32 *lock)
{
	__sync_fetch_and_add(lock, 1);
	if (*(volatile __u32 *)lock == 1) {
		tl_order_weak();
		return true;
	}
	__sync_fetch_and_add(lock, -1);
	return false;
}

static __always_inline void tl_give_back(__u32 *lock)
{
	tl_order_weak();
	__sync_fetch_and_add(lock, -1);
}

/*
 * A uprobe keeps its variables on the stack of its task (docs/decisions/0010-preemption.md).
 *
 * Linux 6.13 (a76ab5731e32), and Debian's 6.12, give programs of this type one stack for each
 * processor. That is safe only for programs that are never preempted. A uprobe may be preempted by
 * a task that runs the same uprobe. A program with a tail call, even one that is never made, gets
 * no such stack.
 */
#ifdef TL_LEGACY
#define tl_own_stack(ctx) ((void)(ctx))
#else
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} tl_nowhere SEC(".maps");

static const volatile bool tl_goes_nowhere = false;

static __always_inline void tl_own_stack(void *ctx)
{
	if (tl_goes_nowhere)
		bpf_tail_call(ctx, &tl_nowhere, 0);
}
#endif

#ifdef TL_LEGACY
#define TL_SOCKET_MAP(of)                     \
	__uint(type, BPF_MAP_TYPE_HASH);      \
	__uint(map_flags, BPF_F_NO_PREALLOC); \
	__uint(max_entries, 16384);           \
	__type(key, __u64);                   \
	__type(value, of);                    \
	__uint(pinning, LIBBPF_PIN_BY_NAME)
#else
#define TL_SOCKET_MAP(of)                      \
	__uint(type, BPF_MAP_TYPE_SK_STORAGE); \
	__uint(map_flags, BPF_F_NO_PREALLOC);  \
	__type(key, int);                      \
	__type(value, of);                     \
	__uint(pinning, LIBBPF_PIN_BY_NAME)
#endif

/* Reads a field of a task. A tracing program that knows the type may read it directly. */
#ifdef TL_LEGACY
#define tl_current_task() ((struct task_struct *)bpf_get_current_task())
#define TL_READ(task, ...) BPF_CORE_READ(task, __VA_ARGS__)
#else
#define tl_current_task() bpf_get_current_task_btf()
#define TL_READ(task, field) ((task)->field)
#endif

#endif
