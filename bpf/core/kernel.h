/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * core/kernel.h - the kernel's types.
 *
 * vmlinux.h is written from the kernel of the machine that builds, an x86-64. Objects for arm64 are
 * made of it, too: what they use and what differs there is declared here. The places of all fields are
 * found at load (CO-RE).
 */
#ifndef THROUGHLINE_CORE_KERNEL_H
#define THROUGHLINE_CORE_KERNEL_H

#if !defined(__TARGET_ARCH_arm64)
#include "vmlinux.h"
#else
#define pt_regs pt_regs___other
#define user_pt_regs user_pt_regs___other
#include "vmlinux.h"
#undef pt_regs
#undef user_pt_regs

/* uapi/asm/ptrace.h: this never changes. */
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct pt_regs {
	union {
		struct user_pt_regs user_regs;
		struct {
			__u64 regs[31];
			__u64 sp;
			__u64 pc;
			__u64 pstate;
		};
	};
	__u64 orig_x0;
	__s32 syscallno; /* -1: the thread is in no system call */
};

struct thread_struct___arm64 {
	struct {
		unsigned long tp_value;
	} uw;
};

struct task_struct___arm64 {
	struct thread_struct___arm64 thread;
};

#pragma clang attribute pop

#endif /* arm64 */

#endif
