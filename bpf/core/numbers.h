/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* core/numbers.h - numbers of system calls of 64-bit programs; below 0: it has no such call. */
#ifndef THROUGHLINE_CORE_NUMBERS_H
#define THROUGHLINE_CORE_NUMBERS_H

#if defined(__TARGET_ARCH_x86)
#define TL_NR_READ 0
#define TL_NR_WRITE 1
#define TL_NR_POLL 7
#define TL_NR_IOCTL 16
#define TL_NR_PWRITE64 18
#define TL_NR_READV 19
#define TL_NR_WRITEV 20
#define TL_NR_SELECT 23
#define TL_NR_SENDFILE 40
#define TL_NR_ACCEPT 43
#define TL_NR_SENDTO 44
#define TL_NR_RECVFROM 45
#define TL_NR_SENDMSG 46
#define TL_NR_RECVMSG 47
#define TL_NR_LISTEN 50
#define TL_NR_GETPEERNAME 52
#define TL_NR_GETSOCKOPT 55
#define TL_NR_SETPGID 109
#define TL_NR_EPOLL_WAIT 232
#define TL_NR_PSELECT6 270
#define TL_NR_PPOLL 271
#define TL_NR_SPLICE 275
#define TL_NR_EPOLL_PWAIT 281
#define TL_NR_ACCEPT4 288
#define TL_NR_SENDMMSG 307
#elif defined(__TARGET_ARCH_arm64)
#define TL_NR_EPOLL_PWAIT 22
#define TL_NR_IOCTL 29
#define TL_NR_READ 63
#define TL_NR_WRITE 64
#define TL_NR_READV 65
#define TL_NR_WRITEV 66
#define TL_NR_PWRITE64 68
#define TL_NR_SENDFILE 71
#define TL_NR_PSELECT6 72
#define TL_NR_PPOLL 73
#define TL_NR_SPLICE 76
#define TL_NR_SETPGID 154
#define TL_NR_LISTEN 201
#define TL_NR_ACCEPT 202
#define TL_NR_SENDTO 206
#define TL_NR_RECVFROM 207
#define TL_NR_GETPEERNAME 205
#define TL_NR_GETSOCKOPT 209
#define TL_NR_SENDMSG 211
#define TL_NR_RECVMSG 212
#define TL_NR_ACCEPT4 242
#define TL_NR_SENDMMSG 269
#define TL_NR_POLL -101
#define TL_NR_SELECT -102
#define TL_NR_EPOLL_WAIT -103
#else
#error "numbers of system calls of this architecture are not known"
#endif

/* the same everywhere since Linux 5.1 */
#define TL_NR_IO_URING_ENTER 426
#define TL_NR_EPOLL_PWAIT2 441

#endif
