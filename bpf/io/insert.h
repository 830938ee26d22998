/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* io/insert.h - inserts header lines, or a record of FastCGI, into a send. */
#ifndef THROUGHLINE_IO_INSERT_H
#define THROUGHLINE_IO_INSERT_H

#include "io/fastcgi_record.h"
#include "proto/limits.h"
#include "trace/begin.h"

#define TL_LINEAR_MAX 16384 /* a send of up to this size stays in one piece */

/*
 * Does the socket take this much at once? When it takes only a part of a send, the kernel counts
 * our bytes as sent by the application, and some bytes would be sent twice.
 */
static __always_inline bool tl_has_room(struct tcp_sock *tcp, __u32 bytes)
{
	struct sock *sk = &tcp->inet_conn.icsk_inet.sk;
	__u32 lowat = tcp->notsent_lowat;

	/* each segment needs about 1 KB in addition to its bytes, which are at least 536 */
	if ((__s64)sk->sk_wmem_queued + 3 * bytes + 4096 > sk->sk_sndbuf)
		return false;
	return !lowat || tcp->write_seq - tcp->snd_nxt + bytes < lowat;
}

#define TL_PARENT_AT 36 /* of the parent id, in the value of traceparent */
#define TL_PARENT_DIGITS 16

/*
 * A proxy passes on the traceparent that it was sent: the call's own span becomes the parent of what
 * receives it. Nothing else of the message changes, nor its length. It is left as it is where not all
 * of the parent id is in the current send.
 */
__noinline int tl_update_header(struct sk_msg_md *msg, TL_FLOW)
{
	TL_TAKE_FLOW(flow, text);
	const struct tl_settings *settings = tl_settings_now();
	__u8 *data, *data_end;
	__u32 at, i;

	if (!flow || !text || !settings || !settings->updates)
		return 0;
	at = flow->out.traceparent_at;
	if (at > TL_HEADER_BYTES_MAX)
		return 0;
	at += TL_PARENT_AT;
	if (bpf_msg_pull_data(msg, at, at + TL_PARENT_DIGITS, 0))
		return 0;
	data = msg->data;
	data_end = msg->data_end;
	if (data + TL_PARENT_DIGITS > data_end)
		return 0;
	for (i = 0; i < TL_PARENT_DIGITS; i++) {
		if (data[i] != (__u8)text->traceparent[TL_PARENT_AT + i])
			return 0;
	}
	tl_hex_write(data, flow->exchange.context.span_id, TL_PARENT_DIGITS / 2);
	tl_count(TL_UPDATED_HEADER);
	return 0;
}

/* Undoes an insertion. Where that fails, the send is refused. */
static __always_inline int tl_undo(struct sk_msg_md *msg, __u32 at, __u32 bytes)
{
	tl_count(TL_SKIP_NO_MEMORY);
	if (!bpf_msg_pop_data(msg, at, bytes, 0))
		return 0;
	tl_count(TL_FORCED_DROP);
	return -1;
}

/*
 * Writes `bytes` of header lines to offset `at` of the send, where there is room for them. False:
 * the bytes of the send cannot be written. A global function, so that the verifier does not walk
 * what follows for each length.
 */
__noinline int tl_write_lines(struct sk_msg_md *msg, TL_FLOW, __u32 at, __u32 bytes)
{
	TL_TAKE_FLOW(flow, text);
	__u8 *data = msg->data, *data_end = msg->data_end;
	__u8 *out;

	if (!flow || !text || at > TL_HEADER_BYTES_MAX)
		return false;
	out = data + at;
	/*
	 * the same pointer for the check and the use: the verifier keeps a range for each pointer
	 */
	asm volatile("" : "+r"(out));
	if (out + TL_TRACEPARENT_BYTES > data_end)
		return false;
	tl_write_traceparent(out, &flow->exchange.context);
	if (bytes == TL_TRACEPARENT_BYTES)
		return true;
	out += TL_TRACEPARENT_BYTES;
	if (out + 14 > data_end)
		return false;
	__builtin_memcpy(out, "tracestate: ", 12);
	bytes = tl_length(bytes - TL_TRACEPARENT_BYTES - 14, TL_TRACESTATE_MAX);
	out += 12 + bytes;
	asm volatile("" : "+r"(out));
	if (out + 2 > data_end)
		return false;
	out[0] = '\r';
	out[1] = '\n';
	return tl_write_state(msg, TL_GIVE_FLOW(flow, text), at + TL_TRACEPARENT_BYTES + 12, bytes);
}

/*
 * Inserts `bytes` of header lines, or of a record, at offset `at` of the send. Returns the bytes
 * inserted, 0 when the send is unchanged, -1 when it must be refused.
 */
__noinline int tl_insert(struct sk_msg_md *msg, TL_FLOW, __u32 at, __u32 bytes)
{
	TL_TAKE_FLOW(flow, text);
	__u32 size, end;
	bool fastcgi;

	if (!flow || !text)
		return 0;
	fastcgi = tl_is_in_fastcgi(flow);
	if (at > TL_HEADER_BYTES_MAX || bytes < TL_TRACEPARENT_BYTES ||
	    bytes > (fastcgi ? TL_RECORD_MAX : TL_TRACEPARENT_BYTES + 14 + TL_TRACESTATE_MAX)) {
		tl_count(TL_SKIP_HEADERS_TOO_LONG);
		return 0;
	}
	if (bpf_msg_push_data(msg, at, bytes, 0)) {
		tl_count(TL_SKIP_NO_MEMORY);
		return 0;
	}
	/*
	 * in one piece: three pieces would be sent as three segments, and one would wait for the
	 * ACK of another
	 */
	size = msg->size;
	end = size <= TL_LINEAR_MAX ? size : at + bytes + (fastcgi ? TL_FASTCGI_HEADER_BYTES : 0);
	if (bpf_msg_pull_data(msg, 0, end, 0) ||
	    !(fastcgi ? tl_write_record(msg, TL_GIVE_FLOW(flow, text), at, bytes) :
			tl_write_lines(msg, TL_GIVE_FLOW(flow, text), at, bytes)))
		return tl_undo(msg, at, bytes);
	tl_count(TL_INJECTED);
	if (bytes > (fastcgi ? TL_RECORD_BYTES : TL_TRACEPARENT_BYTES))
		tl_count(TL_INJECTED_TRACESTATE);
	return bytes;
}

#endif
