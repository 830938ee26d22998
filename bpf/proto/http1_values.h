/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* proto/http1_values.h - the header values that are needed. */
#ifndef THROUGHLINE_PROTO_HTTP1_VALUES_H
#define THROUGHLINE_PROTO_HTTP1_VALUES_H

#include "proto/tracestate.h"

#define TL_NAME_MAX 24

/* not static: libbpf relocates only global variables of .rodata */
const char tl_names[TL_HEADERS][TL_NAME_MAX] = {
	[TL_HEADER_TRACEPARENT] = "traceparent",
	[TL_HEADER_TRACESTATE] = "tracestate",
	[TL_HEADER_TRANSFER_ENCODING] = "transfer-encoding",
	[TL_HEADER_CONTENT_LENGTH] = "content-length",
	[TL_HEADER_HOST] = "host",
};

static __always_inline __u8 tl_lower(__u8 c)
{
	return c >= 'A' && c <= 'Z' ? c | 0x20 : c;
}

/* The value of the last header line is not reliable. */
static __always_inline void tl_http_bad_value(struct tl_http *http)
{
	http->flags |= TL_HTTP_MALFORMED;
	if (http->header == TL_HEADER_TRACEPARENT)
		http->flags |= TL_HEADER_BAD_TRACEPARENT;
	else if (http->header == TL_HEADER_TRACESTATE)
		http->flags |= TL_HEADER_BAD_TRACESTATE;
}

/* The value of a header line is complete. `header` keeps its value: a folded line may follow. */
static __always_inline void tl_http_end_value(struct tl_http *http, struct tl_text *text)
{
	switch (http->header) {
	case TL_HEADER_TRANSFER_ENCODING:
		/* the last coding is "chunked"; `pos` is its length */
		if (http->pos == 7 && (http->token & 0xffffffffffffffULL) == 0x6368756e6b6564ULL)
			http->flags |= TL_HTTP_CHUNKED;
		else
			http->flags &= ~TL_HTTP_CHUNKED;
		break;
	case TL_HEADER_CONTENT_LENGTH:
		if (!http->pos) {
			http->flags |= TL_HTTP_MALFORMED;
			break;
		}
		if ((http->flags & TL_HTTP_HAS_LENGTH) && http->token != http->remain)
			http->flags |= TL_HTTP_MALFORMED;
		http->remain = http->token;
		http->flags |= TL_HTTP_HAS_LENGTH;
		break;
	case TL_HEADER_TRACESTATE:
		/* a last member may be empty, but not a key without a value */
		if (http->member == TL_MEMBER_KEY ||
		    (http->member == TL_MEMBER_VALUE && !http->pos))
			http->flags |= TL_HEADER_BAD_TRACESTATE;
		break;
	}
}

/* Parses one byte of a header value that is needed. */
static __always_inline void tl_http_value(struct tl_http *http, struct tl_text *text, __u8 c)
{
	__u32 at;

	switch (http->header) {
	case TL_HEADER_TRACEPARENT:
		if (c == ' ' || c == '\t') {
			if (http->pos)
				http->names |= TL_VALUE_SPACE;
			return;
		}
		if (http->names & TL_VALUE_SPACE)
			http->flags |= TL_HEADER_BAD_TRACEPARENT;
		at = http->pos;
		if (at < sizeof(text->traceparent))
			text->traceparent[at] = c;
		if (http->pos < 0x3fff)
			http->pos++;
		text->traceparent_len = http->pos;
		return;
	case TL_HEADER_TRACESTATE:
		tl_http_tracestate(http, text, c);
		return;
	case TL_HEADER_HOST:
		if (http->pos == 0 && (c == ' ' || c == '\t'))
			return;
		at = http->pos;
		if (at < sizeof(text->host)) {
			text->host[at] = c;
			http->pos++;
			text->host_len = http->pos;
		}
		return;
	case TL_HEADER_CONTENT_LENGTH:
		if (c == ' ' || c == '\t') {
			if (http->pos)
				http->names |= TL_VALUE_SPACE;
			return;
		}
		if (c < '0' || c > '9' || http->names & TL_VALUE_SPACE || http->pos >= 15) {
			http->flags |= TL_HTTP_MALFORMED;
			return;
		}
		http->token = http->token * 10 + (c - '0');
		http->pos++;
		return;
	case TL_HEADER_TRANSFER_ENCODING:
		if (c == ',') {
			http->token = 0;
			http->pos = 0;
			http->names = 0;
			return;
		}
		if (c == ' ' || c == '\t') {
			if (http->pos)
				http->names |= TL_VALUE_SPACE;
			return;
		}
		if (http->names & TL_VALUE_SPACE) {
			/* two words in one coding: its meaning is not defined */
			http->flags |= TL_HTTP_MALFORMED;
			return;
		}
		http->token = (http->token << 8) | tl_lower(c);
		if (http->pos < 0x3fff)
			http->pos++;
		return;
	}
}

/* The name before a colon is complete: which header is it? */
static __always_inline void tl_http_begin_value(struct tl_http *http, struct tl_text *text)
{
	__u8 header = TL_HEADER_NONE;
	__u16 pos = http->pos;

	if ((http->names & (1 << TL_HEADER_TRACEPARENT)) && pos == 11)
		header = TL_HEADER_TRACEPARENT;
	else if ((http->names & (1 << TL_HEADER_TRACESTATE)) && pos == 10)
		header = TL_HEADER_TRACESTATE;
	else if ((http->names & (1 << TL_HEADER_TRANSFER_ENCODING)) && pos == 17)
		header = TL_HEADER_TRANSFER_ENCODING;
	else if ((http->names & (1 << TL_HEADER_CONTENT_LENGTH)) && pos == 14)
		header = TL_HEADER_CONTENT_LENGTH;
	else if ((http->names & (1 << TL_HEADER_HOST)) && pos == 4)
		header = TL_HEADER_HOST;

	http->header = header;
	http->pos = 0;
	http->names = 0;
	http->state = TL_HTTP_VALUE;
	switch (header) {
	case TL_HEADER_NONE:
		http->state = TL_HTTP_SKIP;
		break;
	case TL_HEADER_TRACEPARENT:
		if (http->flags & TL_HEADER_HAS_TRACEPARENT)
			http->flags |= TL_HEADER_BAD_TRACEPARENT;
		http->flags |= TL_HEADER_HAS_TRACEPARENT;
		text->traceparent_len = 0;
		break;
	case TL_HEADER_TRACESTATE:
		http->flags |= TL_HEADER_HAS_TRACESTATE;
		http->member = TL_MEMBER_START;
		http->token = 0;
		break;
	case TL_HEADER_HOST:
		text->host_len = 0;
		break;
	case TL_HEADER_TRANSFER_ENCODING:
		http->flags |= TL_HTTP_HAS_ENCODING;
		http->token = 0;
		break;
	case TL_HEADER_CONTENT_LENGTH:
		http->token = 0;
		break;
	}
}

#endif
