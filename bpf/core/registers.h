/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* core/registers.h - the registers with which the current thread entered the kernel. */
#ifndef THROUGHLINE_CORE_REGISTERS_H
#define THROUGHLINE_CORE_REGISTERS_H

#include "core/compat.h"
#include "core/numbers.h"

/* Registers of the current thread from when it entered the kernel. */
struct tl_user {
	__u64 sp;
	__u64 goroutine; /* the register in which Go keeps the current goroutine (ABIInternal, Go 1.17) */
};

/* The system call of a 64-bit program. */
struct tl_syscall {
	__s64 number;
	__u64 second; /* its second and third argument */
	__u64 third;
};

#if defined(__TARGET_ARCH_x86)
#define TL_GOROUTINE(of) ((of)->r14)
#define TL_RETURN_BYTES \
	8 /* the return address, which is off the stack when a function has returned */
#define TL_COMPAT_FIELD thread_info.status
#define TL_COMPAT_MASK 2 /* TS_COMPAT */
#else
#define TL_GOROUTINE(of) ((of)->regs[28])
#define TL_RETURN_BYTES 0
#define TL_COMPAT_FIELD thread_info.flags
#define TL_COMPAT_MASK (1UL << 22) /* TIF_32BIT */
#endif

/* Is the current thread in a system call of a 32-bit program? */
static __always_inline bool tl_is_compat(void)
{
#ifdef TL_LEGACY
	return BPF_CORE_READ(tl_current_task(), TL_COMPAT_FIELD) & TL_COMPAT_MASK;
#else
	return tl_current_task()->TL_COMPAT_FIELD & TL_COMPAT_MASK;
#endif
}

#define TL_STACK_BYTES 16384 /* THREAD_SIZE of x86-64 */
#define TL_USER_CS 0x33
#define TL_USER32_CS 0x23

/*
 * The registers at the top of the task's stack, for the objects for older kernels. From Linux 6.9 on
 * they lie lower: then the code segment found there is wrong. False: they could not be read, which is
 * so on arm64, whose kernels differ in the size of a stack.
 */
static __always_inline bool tl_stack_registers(struct pt_regs *regs)
{
#if defined(__TARGET_ARCH_x86)
	__u64 stack = (__u64)BPF_CORE_READ(tl_current_task(), stack);

	if (bpf_probe_read_kernel(regs, sizeof(*regs),
				  (void *)(stack + TL_STACK_BYTES - sizeof(*regs))))
		return false;
	return regs->cs == TL_USER_CS || regs->cs == TL_USER32_CS;
#else
	return false;
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

/* False: the current thread is in no system call of a 64-bit program, or that could not be read. */
static __always_inline bool tl_read_syscall(struct tl_syscall *call)
{
#ifdef TL_LEGACY
	struct pt_regs stored = {}, *regs = &stored;

	if (!tl_stack_registers(regs))
		return false;
#else
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
#endif
#if defined(__TARGET_ARCH_x86)
	call->number = regs->orig_ax;
	call->second = regs->si;
	call->third = regs->dx;
#else
	call->number = regs->syscallno;
	call->second = regs->regs[1];
	call->third = regs->regs[2];
	if (call->number < 0)
		return false;
#endif
	return !tl_is_compat();
}

/* Is the current thread in a system call that sends? False where that is not known. */
static __always_inline bool tl_in_send(void)
{
	struct tl_syscall call = {};

	if (!tl_read_syscall(&call))
		return false;
	switch (call.number) {
	case TL_NR_WRITE:
	case TL_NR_WRITEV:
	case TL_NR_SENDFILE:
	case TL_NR_SENDTO:
	case TL_NR_SENDMSG:
	case TL_NR_SPLICE:
	case TL_NR_SENDMMSG:
	case TL_NR_IO_URING_ENTER: /* it sends at once where that does not block */
		return true;
	}
	return false;
}

#define TL_MSG_PEEK 2

/* Is the current thread in a system call that looks at received bytes and leaves them there? */
static __always_inline bool tl_peeks(void)
{
#if defined(TL_LEGACY)
	return false;
#elif defined(__TARGET_ARCH_x86)
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());

	return regs->orig_ax == TL_NR_RECVFROM && regs->r10 & TL_MSG_PEEK;
#else
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());

	return regs->syscallno == TL_NR_RECVFROM && regs->regs[3] & TL_MSG_PEEK;
#endif
}

#endif
