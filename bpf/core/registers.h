/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* core/registers.h - the registers with which the current thread entered the kernel. */
#ifndef THROUGHLINE_CORE_REGISTERS_H
#define THROUGHLINE_CORE_REGISTERS_H

#include "core/compat.h"

/* Registers of the current thread from when it entered the kernel. */
struct tl_user {
	__u64 sp;
	__u64 goroutine; /* the register in which Go keeps the current goroutine (ABIInternal, Go 1.17) */
};

#if defined(__TARGET_ARCH_x86)
#define TL_GOROUTINE(regs) ((regs)->r14)
#define TL_RETURN_BYTES \
	8 /* the return address, which is off the stack when a function has returned */
#else
#define TL_GOROUTINE(regs) ((regs)->regs[28])
#define TL_RETURN_BYTES 0
#endif

#if defined(__TARGET_ARCH_x86)
#define TL_TS_COMPAT 2 /* thread_info.status: in a system call of a 32-bit program */

/* Is the current thread in a system call of a 32-bit program? */
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
 * The registers that are used here. The objects for older kernels read them from the top of the
 * task's stack. From Linux 6.9 on they lie lower: then the code segment found there is wrong.
 * False: they could not be read.
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
	regs->di = user->di;
	regs->si = user->si;
	regs->dx = user->dx;
	regs->sp = user->sp;
	regs->cs = user->cs;
#endif
	return regs->cs == TL_USER_CS || regs->cs == TL_USER32_CS;
#endif
}

/* False: the registers could not be read. */
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

/* Is the current thread in a system call that sends? False where that is not known. */
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
	case 426: /* io_uring_enter: it sends at once where that does not block */
		return true;
	}
#endif
	return false;
}

#define TL_NR_RECVFROM 45
#define TL_MSG_PEEK 2

/* Is the current thread in a system call that looks at received bytes and leaves them there? */
static __always_inline bool tl_peeks(void)
{
#if defined(__TARGET_ARCH_x86) && !defined(TL_LEGACY)
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());

	return regs->orig_ax == TL_NR_RECVFROM && regs->r10 & TL_MSG_PEEK;
#else
	return false;
#endif
}

#endif
