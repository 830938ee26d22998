/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * io/syscalls.h - what a system call tells about its thread.
 *
 * Numbers of the architecture itself, and of x86 those of 32-bit programs (asm/unistd_32.h).
 */
#ifndef THROUGHLINE_IO_SYSCALLS_H
#define THROUGHLINE_IO_SYSCALLS_H

#include "core/registers.h"
#include "runtimes/node.h"

#if defined(__TARGET_ARCH_x86)
#define TL_NR_IOCTL 16
#define TL_NR_READ 0
#define TL_NR_SETPGID 109
#define TL_NR_POLL 7
#define TL_NR_ACCEPT 43
#define TL_NR_ACCEPT4 288
#define TL_NR_PWRITE64 18
#define TL_NR_LISTEN 50
#define TL_NR_GETSOCKOPT 55
#define TL_NR_SELECT 23
#define TL_NR_EPOLL_WAIT 232
#define TL_NR_PSELECT6 270
#define TL_NR_PPOLL 271
#define TL_NR_EPOLL_PWAIT 281
#define TL_NR_IO_URING_ENTER 426
#define TL_NR_EPOLL_PWAIT2 441
#define TL_X32_BIT \
	0x40000000 /* set in numbers of programs with 32-bit pointers (x32); some of their numbers differ */
#define TL_NR_X32_IOCTL (TL_X32_BIT | 514)
#elif defined(__TARGET_ARCH_arm64)
#define TL_NR_IOCTL 29
#define TL_NR_READ 63
#define TL_NR_SETPGID 154
#define TL_NR_POLL -1
#define TL_NR_ACCEPT 202
#define TL_NR_ACCEPT4 242
#define TL_NR_PWRITE64 68
#define TL_NR_LISTEN 201
#define TL_NR_GETSOCKOPT 209
#define TL_NR_SELECT -1
#define TL_NR_EPOLL_WAIT -1
#define TL_NR_PSELECT6 72
#define TL_NR_PPOLL 73
#define TL_NR_EPOLL_PWAIT 22
#define TL_NR_IO_URING_ENTER 426
#define TL_NR_EPOLL_PWAIT2 441
#endif

#define TL_FIONREAD 0x541b
#define TL_IPPROTO_TCP 6
#define TL_TCP_INFO 11

enum tl_call {
	TL_CALL_OTHER = 0,
	TL_CALL_WAIT, /* for several descriptors */
	TL_CALL_IOCTL,
	TL_CALL_ACCEPT,
	TL_CALL_LISTEN,
	TL_CALL_STATE, /* getsockopt(…, IPPROTO_TCP, TCP_INFO, …) */
	TL_CALL_TELLS, /* a process of Node.js tells where it shows a request */
};

/* `second`, `third` and `fourth` are arguments of the system call `number`. */
static __always_inline enum tl_call tl_call_of(__u32 number, __u64 second, __u64 third,
					       __u64 fourth)
{
	switch (number) {
	case TL_NR_EPOLL_WAIT:
	case TL_NR_EPOLL_PWAIT:
	case TL_NR_EPOLL_PWAIT2:
	case TL_NR_PSELECT6:
#if defined(__TARGET_ARCH_x86)
	case TL_NR_SELECT:
#endif
		return TL_CALL_WAIT;
#if defined(__TARGET_ARCH_x86)
	case TL_NR_POLL:
#endif
	case TL_NR_PPOLL:
		return second < 2 ? TL_CALL_OTHER : TL_CALL_WAIT;
	case TL_NR_IOCTL:
		return TL_CALL_IOCTL;
	case TL_NR_ACCEPT:
	case TL_NR_ACCEPT4:
		return TL_CALL_ACCEPT;
	case TL_NR_LISTEN:
		return TL_CALL_LISTEN;
	case TL_NR_GETSOCKOPT:
		return (__u32)second == TL_IPPROTO_TCP && (__u32)third == TL_TCP_INFO ?
			       TL_CALL_STATE :
			       TL_CALL_OTHER;
	case TL_NR_PWRITE64:
		return fourth == TL_NODE_POSITION ? TL_CALL_TELLS : TL_CALL_OTHER;
	case TL_NR_IO_URING_ENTER:
		/* min_complete: the call waits only where it is not 0 */
		return third ? TL_CALL_WAIT : TL_CALL_OTHER;
	}
	return TL_CALL_OTHER;
}

/* How long the system call `number` waits at most, in ms; -1: for ever; 0: that is not known. */
static __always_inline __s32 tl_timeout_of(__u32 number, __u64 fourth)
{
	return number == TL_NR_EPOLL_WAIT || number == TL_NR_EPOLL_PWAIT ? (__s32)fourth : 0;
}

#if defined(__TARGET_ARCH_x86)
/* The same for a 32-bit program. */
static __always_inline enum tl_call tl_call32_of(__u32 number, __u32 second, __u32 third)
{
	switch (number) {
	case 82: /* select */
	case 142: /* _newselect */
	case 256: /* epoll_wait */
	case 308: /* pselect6 */
	case 319: /* epoll_pwait */
	case 413: /* pselect6_time64 */
	case 441: /* epoll_pwait2 */
		return TL_CALL_WAIT;
	case 168: /* poll */
	case 309: /* ppoll */
	case 414: /* ppoll_time64 */
		return second < 2 ? TL_CALL_OTHER : TL_CALL_WAIT;
	case 54:
		return TL_CALL_IOCTL;
	case 426: /* io_uring_enter */
		return third ? TL_CALL_WAIT : TL_CALL_OTHER;
	}
	return TL_CALL_OTHER;
}
#endif

#endif
