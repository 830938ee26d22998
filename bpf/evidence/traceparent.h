/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * evidence/traceparent.h - the context of a call as it is written into its header.
 */
#ifndef THROUGHLINE_TRACEPARENT_H
#define THROUGHLINE_TRACEPARENT_H

#include "evidence/context.h"

#define TL_TRACEPARENT_VALUE_BYTES 55

static __always_inline void tl_hex_write(__u8 *out, const __u8 *in, __u32 bytes)
{
	__u32 i;

#pragma unroll
	for (i = 0; i < bytes; i++) {
		__u8 high = in[i] >> 4;
		__u8 low = in[i] & 15;

		out[2 * i] = high < 10 ? '0' + high : 'a' + high - 10;
		out[2 * i + 1] = low < 10 ? '0' + low : 'a' + low - 10;
	}
}

/* `00-…-…-…`, TL_TRACEPARENT_VALUE_BYTES long */
static __always_inline void tl_write_traceparent_value(__u8 *out, const struct tl_conn *conn)
{
	__builtin_memcpy(out, "00-", 3);
	tl_hex_write(out + 3, conn->trace_id, 16);
	out[35] = '-';
	tl_hex_write(out + 36, conn->span_id, 8);
	out[52] = '-';
	tl_hex_write(out + 53, &conn->trace_flags, 1);
}

/* `traceparent: 00-…-…-…` CR LF, TL_TRACEPARENT_BYTES long */
static __always_inline void tl_write_traceparent(__u8 *out, const struct tl_conn *conn)
{
	__builtin_memcpy(out, "traceparent: ", 13);
	tl_write_traceparent_value(out + 13, conn);
	out[68] = '\r';
	out[69] = '\n';
}

/* Takes over the parent's tracestate: it travels with the trace. */
static __always_inline void tl_inherit_tracestate(struct tl_text *text,
						  const struct tl_parent *parent)
{
	struct tl_tracestate *state;
	__u64 key;

	text->tracestate_len = 0;
	if (!parent || !parent->tracestate_len)
		return;
	key = parent->key;
	state = bpf_map_lookup_elem(&tl_tracestates, &key);
	if (!state)
		return;
	__builtin_memcpy(text->tracestate, state->text, TL_TRACESTATE_MAX);
	asm volatile("" ::: "memory");
	/* what was copied may be another's by now */
	if (*(volatile __u64 *)&state->request == key)
		text->tracestate_len = parent->tracestate_len;
}

#endif
