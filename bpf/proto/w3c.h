/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* proto/w3c.h - W3C Trace Context Level 2: ids, flags, `traceparent`. */
#ifndef THROUGHLINE_PROTO_W3C_H
#define THROUGHLINE_PROTO_W3C_H

#include "proto/text.h"

#define TL_FLAG_SAMPLED 0x01
#define TL_FLAG_RANDOM 0x02
#define TL_TRACEPARENT_VALUE_BYTES 55

/* The context of a span, as its children get it. */
struct tl_context {
	__u8 trace_id[16];
	__u8 span_id[8];
	__u8 trace_flags;
	__u8 _pad[7];
} __attribute__((aligned(8))); /* aligned, so that it is copied in words */

static __always_inline void tl_random_id(__u8 *id, __u32 words)
{
	__u32 *word = (__u32 *)id;
	__u32 any = 0;
	__u32 i;

	for (i = 0; i < words; i++) {
		word[i] = bpf_get_prandom_u32();
		any |= word[i];
	}
	if (!any)
		id[0] = 1;
}

/*
 * The values of the lower-case hexadecimal digits, and one more. A table, since the verifier would
 * walk the branches of comparisons for each digit.
 */
const __u8 tl_digits[256] = {
	['0'] = 1,  ['1'] = 2,  ['2'] = 3,  ['3'] = 4,  ['4'] = 5,  ['5'] = 6,
	['6'] = 7,  ['7'] = 8,  ['8'] = 9,  ['9'] = 10, ['a'] = 11, ['b'] = 12,
	['c'] = 13, ['d'] = 14, ['e'] = 15, ['f'] = 16,
};

/* Negative: not a lower-case hexadecimal digit */
static __always_inline int tl_hex(char c)
{
	return (int)tl_digits[(__u8)c] - 1;
}

/*
 * W3C Trace Context Level 2, section 3.2: reads the ids of text->traceparent into the text. Returns
 * the flags that are passed on, or -1 for a value that restarts the trace; the ids are undefined
 * then.
 */
__noinline int tl_parse_traceparent(TL_TEXT)
{
	TL_TAKE_TEXT(text);
	/* 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 */
	__u32 len, i, any = 0;
	int high, low, version, wrong = 0;
	const char *value;

	if (!text)
		return -1;
	value = text->traceparent;
	len = text->traceparent_len;
	/* the value of a later version may be longer than what is kept */
	if (len > sizeof(text->traceparent))
		len = sizeof(text->traceparent);
	if (len < 55)
		return -1;
	high = tl_hex(value[0]);
	low = tl_hex(value[1]);
	if (high < 0 || low < 0)
		return -1;
	version = high << 4 | low;
	if (version == 0xff || (version == 0 && len != 55))
		return -1;
	if (len > 55 && value[55] != '-')
		return -1;
	if (value[2] != '-' || value[35] != '-' || value[52] != '-')
		return -1;
#pragma unroll 1
	for (i = 0; i < 16; i++) {
		high = tl_hex(value[3 + 2 * i]);
		low = tl_hex(value[4 + 2 * i]);
		wrong |= high | low;
		text->trace_id[i] = high << 4 | low;
		any |= high | low;
	}
	if (!any || wrong < 0)
		return -1;
	any = 0;
#pragma unroll 1
	for (i = 0; i < 8; i++) {
		high = tl_hex(value[36 + 2 * i]);
		low = tl_hex(value[37 + 2 * i]);
		wrong |= high | low;
		text->parent_span_id[i] = high << 4 | low;
		any |= high | low;
	}
	if (!any || wrong < 0)
		return -1;
	high = tl_hex(value[53]);
	low = tl_hex(value[54]);
	if (high < 0 || low < 0)
		return -1;
	return (high << 4 | low) & (TL_FLAG_SAMPLED | TL_FLAG_RANDOM);
}

static __always_inline __u64 tl_key(const __u8 *span_id)
{
	return *(const __u64 *)span_id;
}

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
static __always_inline void tl_write_traceparent_value(__u8 *out, const struct tl_context *context)
{
	__builtin_memcpy(out, "00-", 3);
	tl_hex_write(out + 3, context->trace_id, 16);
	out[35] = '-';
	tl_hex_write(out + 36, context->span_id, 8);
	out[52] = '-';
	tl_hex_write(out + 53, &context->trace_flags, 1);
}

/* `traceparent: 00-…-…-…` CR LF, TL_TRACEPARENT_BYTES long */
static __always_inline void tl_write_traceparent(__u8 *out, const struct tl_context *context)
{
	__builtin_memcpy(out, "traceparent: ", 13);
	tl_write_traceparent_value(out + 13, context);
	out[68] = '\r';
	out[69] = '\n';
}

#endif
