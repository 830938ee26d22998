/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * core/compat.h - kernel differences, each with the version that ended it.
 *
 * Two objects are made of one source. The ordinary one needs Linux 5.15. With TL_LEGACY it is one
 * for older kernels, down to 5.10, at the price of a hash lookup where the other follows a pointer.
 * The agent tries them in this order. They differ in:
 *
 *   what                                       since   instead
 *   global functions that take pointers        5.13    the socket's cookie, and look up again
 *   (e5069b9c23b3)
 *   bpf_sk_storage_get in tracing programs     5.11    hash maps by cookie
 *   (8e4597c627fb)
 *   bpf_get_current_task_btf (3ca1032ab7ab)    5.11    bpf_get_current_task
 *   bpf_task_pt_regs (dd6e10fbd9fb)            5.15    the top of the task's stack
 */
#ifndef THROUGHLINE_COMPAT_H
#define THROUGHLINE_COMPAT_H

/*
 * `n` as a length between 1 and `max` (a power of two), for a helper that refuses 0; `n` must be
 * that already. Verifiers before Linux 6.8 learn nothing from `n != 0` (d028f87517d6), which is what
 * compilers make of `n < 1`.
 */
static __always_inline __u32 tl_length(__u32 n, __u32 max)
{
	n--;
	asm volatile("%0 &= %1" : "+r"(n) : "i"(max - 1));
	return n + 1;
}

/*
 * Takes a lock that nobody waits for; two that try at once may both fail. By addition alone: an
 * exchange needs Linux 5.12 (5ffa25502b5a).
 */
static __always_inline bool tl_take(__u32 *lock)
{
	__sync_fetch_and_add(lock, 1);
	if (*(volatile __u32 *)lock == 1)
		return true;
	__sync_fetch_and_add(lock, -1);
	return false;
}

static __always_inline void tl_give_back(__u32 *lock)
{
	__sync_fetch_and_add(lock, -1);
}

/*
 * A uprobe keeps its variables on the stack of its task (docs/decisions/0010-preemption.md).
 *
 * Linux 6.13 (a76ab5731e32), and Debian's 6.12, give programs of its type one stack for each processor: for
 * programs that nobody comes in between. A uprobe may be preempted, by a task that comes to the same
 * one. A program with a tail call in it, be it one that is never made, has no such stack.
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

/* A field of a task that a tracing program may follow on its own where the type is known to it. */
#ifdef TL_LEGACY
#define tl_current_task() ((struct task_struct *)bpf_get_current_task())
#define TL_READ(task, ...) BPF_CORE_READ(task, __VA_ARGS__)
#else
#define tl_current_task() bpf_get_current_task_btf()
#define TL_READ(task, field) ((task)->field)
#endif

/* Registers of the current thread from when it entered the kernel. */
struct tl_user {
	__u64 sp;
	__u64 goroutine; /* where Go keeps the current one (ABIInternal, Go 1.17 and later) */
};

#if defined(__TARGET_ARCH_x86)
#define TL_GOROUTINE(regs) ((regs)->r14)
#define TL_RETURN_BYTES 8 /* on the stack when a function begins, off it when it has returned */
#else
#define TL_GOROUTINE(regs) ((regs)->regs[28])
#define TL_RETURN_BYTES 0
#endif

#if defined(__TARGET_ARCH_x86)
#define TL_TS_COMPAT 2 /* thread_info.status: in a system call of a 32-bit program */

/* Does the current thread make a system call by the numbers and registers of 32-bit programs? */
static __always_inline bool tl_is_compat(void)
{
#ifdef TL_LEGACY
	return BPF_CORE_READ(tl_current_task(), thread_info.status) & TL_TS_COMPAT;
#else
	return tl_current_task()->thread_info.status & TL_TS_COMPAT;
#endif
}
#endif

#define TL_STACK_BYTES 16384 /* THREAD_SIZE of x86-64 */
#define TL_USER_CS 0x33
#define TL_USER32_CS 0x23

/*
 * Registers of the current thread from when it entered the kernel, as far as they are asked for here.
 * The older programs find them at the top of the task's stack (from Linux 6.9 on they lie lower), which
 * the code segment there shows. False: they are not to be had.
 */
static __always_inline bool tl_stack_registers(struct pt_regs *regs)
{
#if !defined(__TARGET_ARCH_x86)
	return false;
#else
#ifdef TL_LEGACY
	__u64 stack = (__u64)BPF_CORE_READ(tl_current_task(), stack);

	if (bpf_probe_read_kernel(regs, sizeof(*regs),
				  (void *)(stack + TL_STACK_BYTES - sizeof(*regs))))
		return false;
#else
	struct pt_regs *user = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());

	regs->orig_ax = user->orig_ax;
	regs->si = user->si;
	regs->dx = user->dx;
	regs->sp = user->sp;
	regs->cs = user->cs;
#endif
	return regs->cs == TL_USER_CS || regs->cs == TL_USER32_CS;
#endif
}

/* False: they are not to be had. */
static __always_inline bool tl_read_user(struct tl_user *user)
{
#ifdef TL_LEGACY
	struct pt_regs regs = {};

	if (!tl_stack_registers(&regs))
		return false;
	user->sp = PT_REGS_SP(&regs);
	user->goroutine = TL_GOROUTINE(&regs);
#else
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());

	user->sp = PT_REGS_SP(regs);
	user->goroutine = TL_GOROUTINE(regs);
#endif
	return true;
}

/* Is the current thread in a system call that sends? False where that cannot be told. */
static __always_inline bool tl_in_send(void)
{
#if defined(__TARGET_ARCH_x86)
	struct pt_regs regs = {};

	if (!tl_stack_registers(&regs) || regs.cs != TL_USER_CS || tl_is_compat())
		return false;
	switch (regs.orig_ax) {
	case 1: /* write */
	case 20: /* writev */
	case 40: /* sendfile */
	case 44: /* sendto */
	case 46: /* sendmsg */
	case 275: /* splice */
	case 307: /* sendmmsg */
	case 426: /* io_uring_enter, which sends at once what does not block */
		return true;
	}
#endif
	return false;
}

#endif
