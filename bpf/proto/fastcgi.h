/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * proto/fastcgi.h - the records of FastCGI (FastCGI Specification 1.0, section 3): where the bytes of
 * one direction stand. One request at a time: the id of the request is not looked at.
 */
#ifndef THROUGHLINE_PROTO_FASTCGI_H
#define THROUGHLINE_PROTO_FASTCGI_H

#include "proto/http1_parse.h"

#define TL_FASTCGI_VERSION 1
#define TL_FASTCGI_HEADER_BYTES 8
#define TL_PARAM_MAX 17 /* letters of the longest name that is needed, and a 0 */

enum tl_fastcgi_type {
	TL_FASTCGI_BEGIN_REQUEST = 1,
	TL_FASTCGI_ABORT_REQUEST,
	TL_FASTCGI_END_REQUEST,
	TL_FASTCGI_PARAMS,
	TL_FASTCGI_STDIN,
	TL_FASTCGI_STDOUT,
	TL_FASTCGI_TYPE_MAX = 11,
};

/* Where the bytes of a direction stand. */
enum tl_fastcgi_state {
	TL_FASTCGI_HEADER = 0, /* of a record */
	TL_FASTCGI_CONTENT,
	TL_FASTCGI_PADDING,
};

/* Where the parameters of a request stand; they go on from record to record. */
enum tl_fastcgi_part {
	TL_PART_NAME_LENGTH = 0,
	TL_PART_VALUE_LENGTH,
	TL_PART_NAME,
	TL_PART_VALUE,
};

/* Where the header of an answer stands. */
enum tl_fastcgi_line {
	TL_LINE_START = 0,
	TL_LINE_NAME, /* all letters so far are those of `Status:` */
	TL_LINE_STATUS,
	TL_LINE_SKIP,
	TL_LINE_BODY,
};

enum tl_param {
	TL_PARAM_METHOD = 0,
	TL_PARAM_URI,
	TL_PARAM_HOST,
	TL_PARAM_TRACEPARENT,
	TL_PARAM_TRACESTATE,
	TL_PARAM_PROTOCOL,
	TL_PARAMS,
	TL_PARAM_NONE = 0xff,
};

/* One direction of a connection. */
struct tl_fastcgi {
	__u32 left; /* bytes left of the content or the padding of the record */
	__u32 number; /* the length that is being read; of a body's record: the length of its content */
	__u32 name; /* bytes left of the name, of the value */
	__u32 value;
	__u16 at; /* position in the name or value */
	__u8 state; /* enum tl_fastcgi_state */
	__u8 pos; /* in the record's header */
	__u8 type; /* enum tl_fastcgi_type */
	__u8 padding;
	__u8 part; /* request: enum tl_fastcgi_part; answer: enum tl_fastcgi_line */
	__u8 param; /* enum tl_param: whose value it is */
	__u8 names; /* one bit for each enum tl_param whose name still fits */
	__u8 more; /* bytes left of the number */
	__u8 _pad[2];
};

/* May these eight bytes be the start of a request? */
static __always_inline bool tl_begins_fastcgi(const __u8 *start)
{
	return start[0] == TL_FASTCGI_VERSION && start[1] == TL_FASTCGI_BEGIN_REQUEST &&
	       !start[4] && start[5] == TL_FASTCGI_HEADER_BYTES && !start[7];
}

#define TL_FASTCGI_BEGIN_BYTES 16
#define TL_FASTCGI_RESPONDER 1

/*
 * Do these TL_FASTCGI_BEGIN_BYTES begin a request? They are the whole first record. On a TCP port
 * anything may be spoken.
 */
static __always_inline bool tl_is_fastcgi(const __u8 *start)
{
	const __u8 *content = start + TL_FASTCGI_HEADER_BYTES;

	return tl_begins_fastcgi(start) && (start[2] || start[3]) && !start[6] && !content[0] &&
	       content[1] == TL_FASTCGI_RESPONDER && content[2] <= 1 && !content[3] &&
	       !content[4] && !content[5] && !content[6] && !content[7];
}

/* Returns how many of the next `left` bytes need not be read; they count as parsed. */
static __always_inline __u32 tl_fastcgi_skip(struct tl_fastcgi *fastcgi, __u32 left)
{
	__u32 skip = fastcgi->left;

	switch (fastcgi->state) {
	case TL_FASTCGI_PADDING:
		break;
	case TL_FASTCGI_CONTENT:
		if (fastcgi->type == TL_FASTCGI_PARAMS)
			return 0;
		if (fastcgi->type == TL_FASTCGI_STDOUT && fastcgi->part != TL_LINE_BODY)
			return 0;
		/* the parser ends the record with its last byte */
		if (skip)
			skip--;
		break;
	default:
		return 0;
	}
	if (skip > left)
		skip = left;
	fastcgi->left -= skip;
	if (fastcgi->state == TL_FASTCGI_PADDING && !fastcgi->left)
		fastcgi->state = TL_FASTCGI_HEADER;
	return skip;
}

/* The content of a record is complete. Returns enum tl_feed. */
static __always_inline int tl_fastcgi_ends(struct tl_http *http, struct tl_fastcgi *fastcgi)
{
	fastcgi->left = fastcgi->padding;
	fastcgi->state = fastcgi->padding ? TL_FASTCGI_PADDING : TL_FASTCGI_HEADER;
	if (fastcgi->type != TL_FASTCGI_END_REQUEST)
		return TL_FEED_MORE;
	/* an application that has written nothing has failed */
	if (http->state == TL_HTTP_START)
		http->status = 500;
	else if (http->status < 200)
		http->status = 200;
	fastcgi->part = TL_LINE_START;
	return TL_FEED_MESSAGE;
}

/* `bytes` were sent without being seen. True where they were body, at most up to a record's end. */
static __always_inline bool tl_fastcgi_ahead(struct tl_http *http, struct tl_fastcgi *fastcgi,
					     __u32 bytes)
{
	if (fastcgi->state != TL_FASTCGI_CONTENT || bytes > fastcgi->left)
		return false;
	if (fastcgi->type != TL_FASTCGI_STDIN &&
	    (fastcgi->type != TL_FASTCGI_STDOUT || fastcgi->part != TL_LINE_BODY))
		return false;
	fastcgi->left -= bytes;
	if (!fastcgi->left)
		tl_fastcgi_ends(http, fastcgi);
	return true;
}

/*
 * The last `bytes` that were parsed were not sent and will come again. Steps back where they were body,
 * of one record. False: they were not.
 */
static __always_inline bool tl_fastcgi_back(struct tl_fastcgi *fastcgi, __u32 bytes)
{
	if (fastcgi->state != TL_FASTCGI_CONTENT || fastcgi->type != TL_FASTCGI_STDIN ||
	    fastcgi->left + bytes > fastcgi->number)
		return false;
	fastcgi->left += bytes;
	return true;
}

/* The header of a record is complete. Returns enum tl_feed. */
static __always_inline int tl_fastcgi_begins(struct tl_http *http, struct tl_text *text,
					     struct tl_fastcgi *fastcgi)
{
	int what = TL_FEED_MORE;

	fastcgi->pos = 0;
	switch (fastcgi->type) {
	case TL_FASTCGI_BEGIN_REQUEST:
		fastcgi->part = TL_PART_NAME_LENGTH;
		fastcgi->more = 0;
		what = TL_FEED_BEGIN;
		break;
	case TL_FASTCGI_PARAMS:
		if (fastcgi->left)
			break;
		/* the stream ends in the middle of a parameter */
		if (fastcgi->part != TL_PART_NAME_LENGTH || fastcgi->more)
			return TL_FEED_LOST;
		what = TL_FEED_HEADERS;
		break;
	case TL_FASTCGI_STDIN:
		fastcgi->number = fastcgi->left;
		if (!fastcgi->left)
			what = TL_FEED_MESSAGE;
		break;
	case TL_FASTCGI_STDOUT:
		if (http->state == TL_HTTP_START && fastcgi->left) {
			http->state = TL_HTTP_SKIP;
			http->status = 0;
			fastcgi->part = TL_LINE_START;
		}
		break;
	}
	if (fastcgi->left) {
		fastcgi->state = TL_FASTCGI_CONTENT;
		return what;
	}
	fastcgi->left = fastcgi->padding;
	fastcgi->state = fastcgi->padding ? TL_FASTCGI_PADDING : TL_FASTCGI_HEADER;
	return what;
}

/* One byte of a record's header. Returns enum tl_feed. */
static __always_inline int tl_fastcgi_header(struct tl_http *http, struct tl_text *text,
					     struct tl_fastcgi *fastcgi, __u8 c)
{
	switch (fastcgi->pos++) {
	case 0:
		return c == TL_FASTCGI_VERSION ? TL_FEED_MORE : TL_FEED_LOST;
	case 1:
		if (!c || c > TL_FASTCGI_TYPE_MAX)
			return TL_FEED_LOST;
		fastcgi->type = c;
		break;
	case 4:
		fastcgi->left = c << 8;
		break;
	case 5:
		fastcgi->left |= c;
		break;
	case 6:
		fastcgi->padding = c;
		break;
	case 7:
		return tl_fastcgi_begins(http, text, fastcgi);
	}
	return TL_FEED_MORE;
}

#endif
