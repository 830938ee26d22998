/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * io/syscalls.h - what a system call tells about its thread.
 *
 * Numbers of the architecture itself, and those of 32-bit programs (asm/unistd_32.h of x86, the EABI of
 * arm64's asm/unistd32.h).
 */
#ifndef THROUGHLINE_IO_SYSCALLS_H
#define THROUGHLINE_IO_SYSCALLS_H

#include "core/numbers.h"
#include "core/registers.h"
#include "runtimes/node.h"

#if defined(__TARGET_ARCH_x86)
#define TL_X32_BIT \
	0x40000000 /* set in numbers of programs with 32-bit pointers (x32); some of their numbers differ */
#define TL_NR_X32_IOCTL (TL_X32_BIT | 514)
#endif

/* The number of the same system call for programs with 64-bit pointers. */
static __always_inline __u32 tl_without_x32(__u32 number)
{
#if defined(__TARGET_ARCH_x86)
	return number == TL_NR_X32_IOCTL ? TL_NR_IOCTL : number & ~TL_X32_BIT;
#else
	return number;
#endif
}

#define TL_FIONREAD 0x541b
#define TL_IPPROTO_TCP 6
#define TL_TCP_INFO 11

enum tl_call {
	TL_CALL_OTHER = 0,
	TL_CALL_WAIT, /* for several descriptors */
	TL_CALL_IOCTL,
	TL_CALL_ACCEPT,
	TL_CALL_LISTEN,
	TL_CALL_PEER, /* getpeername() */
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
	case TL_NR_SELECT:
		return TL_CALL_WAIT;
	case TL_NR_POLL:
	case TL_NR_PPOLL:
		return second < 2 ? TL_CALL_OTHER : TL_CALL_WAIT;
	case TL_NR_IOCTL:
		return TL_CALL_IOCTL;
	case TL_NR_ACCEPT:
	case TL_NR_ACCEPT4:
		return TL_CALL_ACCEPT;
	case TL_NR_LISTEN:
		return TL_CALL_LISTEN;
	case TL_NR_GETPEERNAME:
		return TL_CALL_PEER;
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
#define TL_NR32_IOCTL 54
#define TL_NR32_POLL 168
#define TL_NR32_PPOLL 309
#define TL_WAITS32                 \
	case 82: /* select */      \
	case 142: /* _newselect */ \
	case 256: /* epoll_wait */ \
	case 308: /* pselect6 */   \
	case 319 /* epoll_pwait */
#else
#define TL_NR32_IOCTL 54
#define TL_NR32_POLL 168
#define TL_NR32_PPOLL 336
#define TL_WAITS32                 \
	case 82: /* select */      \
	case 142: /* _newselect */ \
	case 252: /* epoll_wait */ \
	case 335: /* pselect6 */   \
	case 346 /* epoll_pwait */
#endif

/* The same for a 32-bit program. */
static __always_inline enum tl_call tl_call32_of(__u32 number, __u32 second, __u32 third)
{
	switch (number) {
TL_WAITS32:
	case 413: /* pselect6_time64 */
	case TL_NR_EPOLL_PWAIT2:
		return TL_CALL_WAIT;
	case TL_NR32_POLL:
	case TL_NR32_PPOLL:
	case 414: /* ppoll_time64 */
		return second < 2 ? TL_CALL_OTHER : TL_CALL_WAIT;
	case TL_NR32_IOCTL:
		return TL_CALL_IOCTL;
	case TL_NR_IO_URING_ENTER:
		return third ? TL_CALL_WAIT : TL_CALL_OTHER;
	}
	return TL_CALL_OTHER;
}

#endif
