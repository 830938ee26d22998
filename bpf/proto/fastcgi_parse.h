/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * proto/fastcgi_parse.h - a resumable parser of FastCGI (FastCGI Specification 1.0, section 3 to 6),
 * a few bytes at a time.
 *
 * It keeps what is needed of the parameters of a request, and the status of its answer. The bodies
 * are skipped.
 */
#ifndef THROUGHLINE_PROTO_FASTCGI_PARSE_H
#define THROUGHLINE_PROTO_FASTCGI_PARSE_H

#include "proto/fastcgi.h"

#define TL_FASTCGI_TURNS 1 /* elements parsed in each call of tl_fastcgi_turns() */

const char tl_params[TL_PARAMS][TL_PARAM_MAX] = {
	[TL_PARAM_METHOD] = "REQUEST_METHOD",
	[TL_PARAM_URI] = "REQUEST_URI",
	[TL_PARAM_HOST] = "HTTP_HOST",
	[TL_PARAM_TRACEPARENT] = "HTTP_TRACEPARENT",
	[TL_PARAM_TRACESTATE] = "HTTP_TRACESTATE",
	[TL_PARAM_PROTOCOL] = "SERVER_PROTOCOL",
};

const char tl_status_name[8] = "status:";

/* The bits of the names that have this length. */
static __always_inline __u8 tl_params_of_length(__u32 length)
{
	switch (length) {
	case 9:
		return 1 << TL_PARAM_HOST;
	case 11:
		return 1 << TL_PARAM_URI;
	case 14:
		return 1 << TL_PARAM_METHOD;
	case 15:
		return 1 << TL_PARAM_TRACESTATE | 1 << TL_PARAM_PROTOCOL;
	case 16:
		return 1 << TL_PARAM_TRACEPARENT;
	}
	return 0;
}

static __always_inline __u8 tl_param_of(__u8 names)
{
	switch (names) {
	case 1 << TL_PARAM_METHOD:
		return TL_PARAM_METHOD;
	case 1 << TL_PARAM_URI:
		return TL_PARAM_URI;
	case 1 << TL_PARAM_HOST:
		return TL_PARAM_HOST;
	case 1 << TL_PARAM_TRACEPARENT:
		return TL_PARAM_TRACEPARENT;
	case 1 << TL_PARAM_TRACESTATE:
		return TL_PARAM_TRACESTATE;
	case 1 << TL_PARAM_PROTOCOL:
		return TL_PARAM_PROTOCOL;
	}
	return TL_PARAM_NONE;
}

/* The value of a parameter is complete. */
static __always_inline void tl_param_ends(struct tl_http *http, struct tl_text *text,
					  struct tl_fastcgi *fastcgi)
{
	if (fastcgi->param == TL_PARAM_TRACESTATE) {
		http->header = TL_HEADER_TRACESTATE;
		tl_http_end_value(http, text);
	}
	fastcgi->part = TL_PART_NAME_LENGTH;
	http->fields++;
}

/* The name of a parameter is complete. */
static __always_inline void tl_param_begins(struct tl_http *http, struct tl_text *text,
					    struct tl_fastcgi *fastcgi)
{
	fastcgi->param = tl_param_of(fastcgi->names);
	fastcgi->part = TL_PART_VALUE;
	fastcgi->at = 0;
	switch (fastcgi->param) {
	case TL_PARAM_TRACEPARENT:
		if (http->flags & TL_HEADER_HAS_TRACEPARENT)
			http->flags |= TL_HEADER_BAD_TRACEPARENT;
		http->flags |= TL_HEADER_HAS_TRACEPARENT;
		text->traceparent_len = 0;
		break;
	case TL_PARAM_TRACESTATE:
		http->flags |= TL_HEADER_HAS_TRACESTATE;
		http->member = TL_MEMBER_START;
		http->token = 0;
		http->names = 0;
		http->pos = 0;
		break;
	}
	if (!fastcgi->value)
		tl_param_ends(http, text, fastcgi);
}

/* One byte of a value that is needed. */
static __always_inline void tl_param_value(struct tl_http *http, struct tl_text *text,
					   const struct tl_fastcgi *fastcgi, __u8 c)
{
	__u32 at = fastcgi->at;

	switch (fastcgi->param) {
	case TL_PARAM_METHOD:
		if (at < TL_METHOD_MAX) {
			text->method[at] = c;
			text->method_len = at + 1;
		}
		return;
	case TL_PARAM_URI:
		if (at < TL_TARGET_MAX)
			text->target[at] = c;
		text->target_len = at + 1;
		return;
	case TL_PARAM_HOST:
		if (at < TL_HOST_MAX) {
			text->host[at] = c;
			text->host_len = at + 1;
		}
		return;
	case TL_PARAM_TRACEPARENT:
		if (at < sizeof(text->traceparent))
			text->traceparent[at] = c;
		text->traceparent_len = at + 1;
		return;
	case TL_PARAM_TRACESTATE:
		tl_http_tracestate(http, text, c);
		return;
	case TL_PARAM_PROTOCOL:
		if (at == 5) /* HTTP/2: the front end speaks it with the client, not here */
			http->minor = c != '1';
		else if (at == 7 && !http->minor)
			http->minor = c == '1';
		return;
	}
}

/* One byte of the length of a name or a value: one byte below 128, or four. */
static __always_inline void tl_param_length(struct tl_fastcgi *fastcgi, __u8 c)
{
	if (fastcgi->more) {
		fastcgi->number = fastcgi->number << 8 | c;
		fastcgi->more--;
	} else {
		fastcgi->number = c & 0x7f;
		fastcgi->more = c & 0x80 ? 3 : 0;
	}
	if (fastcgi->more)
		return;
	if (fastcgi->part == TL_PART_NAME_LENGTH) {
		fastcgi->name = fastcgi->number;
		fastcgi->part = TL_PART_VALUE_LENGTH;
		return;
	}
	fastcgi->value = fastcgi->number;
	fastcgi->names = tl_params_of_length(fastcgi->name);
	fastcgi->at = 0;
	fastcgi->part = TL_PART_NAME;
}

/* One byte of a parameter's name. */
static __always_inline void tl_param_name(struct tl_fastcgi *fastcgi, __u8 c)
{
	__u32 at = fastcgi->at & 31;
	__u8 names = fastcgi->names;
	__u32 i;

	if (at >= TL_PARAM_MAX)
		names = 0;
	else
#pragma unroll
		for (i = 0; i < TL_PARAMS; i++)
			if (tl_params[i][at] != c)
				names &= ~(1 << i);
	fastcgi->names = names;
}

/* One byte of the header of an answer. */
static __always_inline void tl_fastcgi_line(struct tl_http *http, struct tl_fastcgi *fastcgi,
					    __u8 c)
{
	switch (fastcgi->part) {
	case TL_LINE_START:
		if (c == '\r')
			return;
		if (c == '\n') {
			fastcgi->part = TL_LINE_BODY;
			return;
		}
		fastcgi->at = 1;
		fastcgi->part = tl_lower(c) == 's' ? TL_LINE_NAME : TL_LINE_SKIP;
		return;
	case TL_LINE_NAME:
		if (c == '\n')
			fastcgi->part = TL_LINE_START;
		else if (tl_lower(c) != tl_status_name[fastcgi->at & 7])
			fastcgi->part = TL_LINE_SKIP;
		else if (++fastcgi->at == 7)
			fastcgi->part = TL_LINE_STATUS;
		if (fastcgi->part == TL_LINE_STATUS)
			http->status = 0;
		return;
	case TL_LINE_STATUS:
		if (c >= '0' && c <= '9' && http->status < 100) {
			http->status = http->status * 10 + (c - '0');
			return;
		}
		if (c == ' ' && !http->status)
			return;
		fastcgi->part = TL_LINE_SKIP;
	}
	if (c == '\n')
		fastcgi->part = TL_LINE_START;
}

/* Bytes of a name or value that are not needed, of `left` in the chunk. */
static __always_inline __u32 tl_param_skip(struct tl_fastcgi *fastcgi, __u32 left)
{
	__u32 skip;

	if (fastcgi->part == TL_PART_NAME && !fastcgi->names)
		skip = fastcgi->name;
	else if (fastcgi->part == TL_PART_VALUE && fastcgi->param == TL_PARAM_NONE)
		skip = fastcgi->value;
	else
		return 0;
	if (skip > left)
		skip = left;
	return skip > fastcgi->left ? fastcgi->left : skip;
}

/*
 * Parses the parameters at the start of `left` bytes, of which the first is `c`. Returns how many. A
 * global function: the verifier would walk what follows for each of its paths.
 */
__noinline int tl_fastcgi_params(struct tl_http *http, struct tl_text *text,
				 struct tl_fastcgi *fastcgi, __u8 c, __u32 left)
{
	__u32 n;

	if (!http || !text || !fastcgi)
		return 1;
	n = tl_param_skip(fastcgi, left);
	switch (fastcgi->part) {
	case TL_PART_NAME_LENGTH:
	case TL_PART_VALUE_LENGTH:
		tl_param_length(fastcgi, c);
		if (fastcgi->part == TL_PART_NAME && !fastcgi->name)
			tl_param_begins(http, text, fastcgi);
		return 1;
	case TL_PART_NAME:
		if (!n) {
			tl_param_name(fastcgi, c);
			n = 1;
		}
		fastcgi->name -= n;
		fastcgi->at += n;
		if (!fastcgi->name)
			tl_param_begins(http, text, fastcgi);
		return n;
	}
	if (!n) {
		tl_param_value(http, text, fastcgi, c);
		n = 1;
	}
	fastcgi->value -= n;
	if (fastcgi->at < 0x3fff)
		fastcgi->at += n;
	if (!fastcgi->value)
		tl_param_ends(http, text, fastcgi);
	return n;
}

/* Parses the parameters at the chunk's position. Returns how many bytes. */
static __always_inline __u32 tl_fastcgi_param(struct tl_http *http, struct tl_text *text,
					      const struct tl_chunk *chunk,
					      struct tl_fastcgi *fastcgi)
{
	__u32 pos = chunk->pos & (TL_CHUNK - 1);
	__u32 n = tl_fastcgi_params(http, text, fastcgi, chunk->data[pos], chunk->len - pos);

	http->header_bytes += n;
	if (fastcgi->part == TL_PART_VALUE && fastcgi->param == TL_PARAM_TRACEPARENT &&
	    !fastcgi->at)
		http->traceparent_at = chunk->base + pos + n;
	return n;
}

/* Parses the next TL_FASTCGI_TURNS elements for tl_fastcgi_feed(). */
__noinline int tl_fastcgi_turns(struct tl_http *http, struct tl_text *text, struct tl_chunk *chunk,
				struct tl_fastcgi *fastcgi)
{
	int what = TL_FEED_MORE;
	__u32 i, pos, n;
	__u8 c;

	if (!http || !text || !chunk || !fastcgi)
		return TL_FEED_LOST;
	for (i = 0; i < TL_FASTCGI_TURNS; i++) {
		pos = chunk->pos;
		if (pos >= chunk->len || pos >= TL_CHUNK)
			return TL_FEED_MORE;
		n = tl_fastcgi_skip(fastcgi, chunk->len - pos);
		if (n) {
			chunk->pos = pos + n;
			continue;
		}
		c = chunk->data[pos];
		n = 1;
		if (fastcgi->state == TL_FASTCGI_HEADER) {
			if (!fastcgi->pos) {
				/* the empty record behind the parameters is the place for ours */
				http->blank_at = chunk->base + pos;
				http->flags |= TL_HTTP_BLANK_SEEN;
			}
			what = tl_fastcgi_header(http, text, fastcgi, c);
		} else {
			if (fastcgi->type == TL_FASTCGI_PARAMS)
				n = tl_fastcgi_param(http, text, chunk, fastcgi);
			else if (fastcgi->type == TL_FASTCGI_STDOUT)
				tl_fastcgi_line(http, fastcgi, c);
			fastcgi->left -= n;
			if (!fastcgi->left)
				what = tl_fastcgi_ends(http, fastcgi);
		}
		chunk->pos = pos + n;
		if (what != TL_FEED_MORE)
			return what;
	}
	return TL_FEED_MORE;
}

/* Parses a chunk, as tl_http_feed() does. */
__noinline int tl_fastcgi_feed(struct tl_http *http, struct tl_text *text, struct tl_chunk *chunk,
			       struct tl_fastcgi *fastcgi)
{
	int what = TL_FEED_LOST;
	__u32 i;

	if (!http || !text || !chunk || !fastcgi)
		return TL_FEED_LOST;
	for (i = 0; i < TL_CHUNK / TL_FASTCGI_TURNS + 2; i++) {
		what = tl_fastcgi_turns(http, text, chunk, fastcgi);
		if (what != TL_FEED_MORE || chunk->pos >= chunk->len)
			break;
	}
	return what;
}

#endif
