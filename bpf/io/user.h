/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * io/user.h - where the bytes are that the current thread sends or receives: the arguments of its
 * system call.
 */
#ifndef THROUGHLINE_IO_USER_H
#define THROUGHLINE_IO_USER_H

#include "core/registers.h"

#define TL_MSG_IOV_AT 16 /* offsets in struct user_msghdr of 64-bit programs */

/* Buffers in the memory of the process. */
struct tl_buffers {
	__u64 at; /* the buffer, or the array of struct iovec */
	__u64 length; /* of the buffer, or of the array */
	bool vector;
};

struct tl_vector {
	__u64 at;
	__u64 length;
};

enum tl_transfer {
	TL_TRANSFER_UNKNOWN =
		0, /* the bytes are in no memory of the process: sendfile, io_uring, … */
	TL_TRANSFER_BUFFER,
	TL_TRANSFER_VECTOR,
	TL_TRANSFER_MESSAGE,
};

static __always_inline enum tl_transfer tl_transfer_of(__s64 number)
{
	switch (number) {
	case TL_NR_READ:
	case TL_NR_WRITE:
	case TL_NR_SENDTO:
	case TL_NR_RECVFROM:
		return TL_TRANSFER_BUFFER;
	case TL_NR_READV:
	case TL_NR_WRITEV:
		return TL_TRANSFER_VECTOR;
	case TL_NR_SENDMSG:
	case TL_NR_RECVMSG:
		return TL_TRANSFER_MESSAGE;
	}
	return TL_TRANSFER_UNKNOWN;
}

/* Finds the buffers of the system call. False: they are not known. */
static __always_inline bool tl_read_buffers(struct tl_buffers *buffers)
{
	struct tl_syscall call = {};
	struct tl_vector vectors;
	enum tl_transfer transfer;

	/* the arguments of 32-bit programs are in other registers */
	if (!tl_read_syscall(&call))
		return false;
	transfer = tl_transfer_of(call.number);
	if (transfer == TL_TRANSFER_UNKNOWN)
		return false;
	buffers->at = call.second;
	buffers->length = call.third;
	buffers->vector = transfer != TL_TRANSFER_BUFFER;
	if (transfer == TL_TRANSFER_MESSAGE) {
		if (bpf_probe_read_user(&vectors, sizeof(vectors),
					(void *)(buffers->at + TL_MSG_IOV_AT)))
			return false;
		buffers->at = vectors.at;
		buffers->length = vectors.length;
	}
	return true;
}

/* The buffer with this number in the array. False: it cannot be read. */
static __always_inline bool tl_read_vector(const struct tl_buffers *buffers, __u32 number,
					   struct tl_vector *vector)
{
	return !bpf_probe_read_user(vector, sizeof(*vector),
				    (void *)(buffers->at + number * sizeof(*vector)));
}

#endif
