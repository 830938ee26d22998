/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * io/answer.h - what a service writes of an answer, at the end of its system call: packets may leave
 * much later.
 */
#ifndef THROUGHLINE_IO_ANSWER_H
#define THROUGHLINE_IO_ANSWER_H

#include "io/user.h"
#include "trace/flow.h"
#include "trace/request.h"

#define TL_ANSWER_VECTORS 8

/* The last chunk (RFC 9112 section 7.1), with the line break of the chunk before it. */
const char tl_last_chunk[8] = "\r\n0\r\n\r\n";

/* Is the end of this buffer the last chunk of a chunked body, without trailers? */
static __always_inline bool tl_ends_chunked(const struct tl_vector *buffer)
{
	__u64 last = *(const __u64 *)tl_last_chunk, end = 0;

	if (buffer->length == 5)
		return !bpf_probe_read_user(&end, 5, (void *)buffer->at) && end == last >> 16;
	return buffer->length >= 7 &&
	       !bpf_probe_read_user(&end, 7, (void *)(buffer->at + buffer->length - 7)) &&
	       end == last;
}

/*
 * Finds how much the current system call was asked to send, and the last of its buffers. False: not
 * known.
 */
static __always_inline bool tl_asked_to_send(struct tl_vector *last, __u64 *asked)
{
	struct tl_buffers buffers;
	__u32 i;

	if (!tl_read_buffers(&buffers))
		return false;
	if (!buffers.vector) {
		last->at = buffers.at;
		last->length = *asked = buffers.length;
		return true;
	}
	*asked = 0;
	for (i = 0; i < TL_ANSWER_VECTORS; i++) {
		if (i >= buffers.length)
			return true;
		if (!tl_read_vector(&buffers, i, last))
			return false;
		*asked += last->length;
	}
	return buffers.length == TL_ANSWER_VECTORS;
}

/* The service has sent `bytes` on `flow`, or an error, which is negative. */
static __always_inline void tl_answers(struct sock *sk, const struct tl_flow *flow, int bytes)
{
	__u64 key = flow->exchange.request;
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct tl_vector last = {};
	bool known, keeps;
	__u64 asked = 0;

	if (!key || !tcp || !sk->sk_socket)
		return;
	known = tl_asked_to_send(&last, &asked);
	keeps = sk->sk_socket->flags & 1UL << SOCK_NOSPACE || (known && (__s64)asked > bytes);
	tl_answer_keeps(key, keeps);
	/* the header has left, and says no length */
	if (known && !keeps && flow->out.state >= TL_HTTP_CHUNK_SIZE &&
	    flow->out.state <= TL_HTTP_CHUNK_END && tl_ends_chunked(&last))
		tl_answer_ends_at(key, tcp->write_seq);
}

#endif
