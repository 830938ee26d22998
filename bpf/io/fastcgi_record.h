/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * io/fastcgi_record.h - the record of FastCGI that carries a context.
 *
 * The parameters of a request are one stream, which an empty record ends (FastCGI Specification 1.0,
 * section 3.3 and 5.2). Ours stands in front of that, and has whole parameters: PHP-FPM takes those of
 * each record alone.
 */
#ifndef THROUGHLINE_IO_FASTCGI_RECORD_H
#define THROUGHLINE_IO_FASTCGI_RECORD_H

#include "proto/fastcgi.h"
#include "proto/limits.h"
#include "trace/flow.h"

/* Lengths of the name and the value of HTTP_TRACEPARENT, a byte each, and both. */
#define TL_RECORD_NAME_BYTES 16
#define TL_RECORD_BYTES \
	(TL_FASTCGI_HEADER_BYTES + 2 + TL_RECORD_NAME_BYTES + TL_TRACEPARENT_VALUE_BYTES)
/* Of HTTP_TRACESTATE: a byte for the length of the name, four for that of the value. */
#define TL_RECORD_STATE_BYTES (5 + 15)
#define TL_RECORD_MAX (TL_RECORD_BYTES + TL_RECORD_STATE_BYTES + TL_TRACESTATE_MAX)

/*
 * Writes the tracestate, `bytes` long, to offset `at` of the send, where there is room for it. False:
 * the bytes of the send cannot be written. A global function, which the verifier walks once.
 */
__noinline int tl_write_state(struct sk_msg_md *msg, TL_FLOW, __u32 at, __u32 bytes)
{
	TL_TAKE_FLOW(flow, text);
	__u8 *data = msg->data, *data_end = msg->data_end;
	__u8 *out;
	__u32 i;

	if (!flow || !text || at > TL_HEADER_BYTES_MAX + TL_RECORD_MAX)
		return false;
	out = data + at;
	/*
	 * the same pointer for the check and the use: the verifier keeps a range for each pointer
	 */
	asm volatile("" : "+r"(out));
	for (i = 0; i < TL_TRACESTATE_MAX && i < bytes; i++) {
		if (out + 1 > data_end)
			return false;
		*out++ = text->tracestate[i];
	}
	return true;
}

#ifdef TL_LEGACY
static __always_inline int tl_record_bytes(struct tl_http *http, struct tl_text *text)
{
	return 0;
}

static __always_inline int tl_write_record(struct sk_msg_md *msg, __u64 cookie, __u32 at,
					   __u32 bytes)
{
	return false;
}
#else
/* Returns how many bytes to insert, 0 for none. */
static __always_inline int tl_record_bytes(struct tl_http *http, struct tl_text *text)
{
	__u32 bytes = TL_RECORD_BYTES;

	if (text->tracestate_len && text->tracestate_len <= TL_TRACESTATE_MAX)
		bytes += TL_RECORD_STATE_BYTES + text->tracestate_len;
	if (tl_near_fastcgi_limit(http, bytes)) {
		tl_count(TL_SKIP_NEAR_LIMIT);
		return 0;
	}
	return bytes;
}

/*
 * Writes `bytes` of a record to offset `at` of the send, where there is room for them in front of the
 * empty record, whose request it belongs to. False: the bytes of the send cannot be written. A global
 * function, so that the verifier does not walk what follows for each length.
 */
__noinline int tl_write_record(struct sk_msg_md *msg, struct tl_flow *flow, struct tl_text *text,
			       __u32 at, __u32 bytes)
{
	__u8 *data = msg->data, *data_end = msg->data_end;
	__u8 *out, *empty;

	if (!flow || !text || at > TL_HEADER_BYTES_MAX || bytes < TL_RECORD_BYTES ||
	    bytes > TL_RECORD_MAX)
		return false;
	bytes = tl_length(bytes, 1024); /* the compiler makes one comparison of both */
	empty = data + at + bytes;
	out = data + at;
	/*
	 * the same pointers for the check and the use: the verifier keeps a range for each pointer
	 */
	asm volatile("" : "+r"(out), "+r"(empty));
	if (empty + TL_FASTCGI_HEADER_BYTES > data_end || out + TL_RECORD_BYTES > data_end)
		return false;
	if (empty[0] != TL_FASTCGI_VERSION || empty[1] != TL_FASTCGI_PARAMS || empty[4] || empty[5])
		return false;
	out[0] = TL_FASTCGI_VERSION;
	out[1] = TL_FASTCGI_PARAMS;
	out[2] = empty[2];
	out[3] = empty[3];
	bytes -= TL_FASTCGI_HEADER_BYTES;
	out[4] = bytes >> 8;
	out[5] = bytes;
	out[6] = 0;
	out[7] = 0;
	out[8] = TL_RECORD_NAME_BYTES;
	out[9] = TL_TRACEPARENT_VALUE_BYTES;
	__builtin_memcpy(out + 10, "HTTP_TRACEPARENT", TL_RECORD_NAME_BYTES);
	tl_write_traceparent_value(out + 10 + TL_RECORD_NAME_BYTES, &flow->exchange.context);
	bytes -= TL_RECORD_BYTES - TL_FASTCGI_HEADER_BYTES;
	if (!bytes)
		return true;
	out += TL_RECORD_BYTES;
	if (out + TL_RECORD_STATE_BYTES > data_end)
		return false;
	bytes -= TL_RECORD_STATE_BYTES;
	out[0] = 15;
	out[1] = 0x80;
	out[2] = 0;
	out[3] = bytes >> 8;
	out[4] = bytes;
	__builtin_memcpy(out + 5, "HTTP_TRACESTATE", 15);
	return tl_write_state(msg, flow, text, at + TL_RECORD_BYTES + TL_RECORD_STATE_BYTES, bytes);
}
#endif

#endif
