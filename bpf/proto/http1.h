/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * proto/http1.h - HTTP/1.x (RFC 9112): where the bytes of one direction stand, and how messages are
 * framed.
 */
#ifndef THROUGHLINE_PROTO_HTTP1_H
#define THROUGHLINE_PROTO_HTTP1_H

#include "core/abi.h"
#include "core/compat.h"
#include "proto/text.h"

#define TL_HEADER_BYTES_MAX 16384
#define TL_HTTP_NOWHERE (~0U)

/* Where the bytes of one direction of a connection stand. */
enum tl_http_state {
	TL_HTTP_START = 0, /* before a message; empty lines are skipped */
	TL_HTTP_METHOD,
	TL_HTTP_TARGET,
	TL_HTTP_VERSION,
	TL_HTTP_STATUS,
	TL_HTTP_NAME_START, /* first byte of a header line */
	TL_HTTP_NAME,
	TL_HTTP_VALUE,
	TL_HTTP_SKIP, /* the rest of a line whose content is not needed */
	TL_HTTP_BLANK, /* CR of the empty line was seen */
	TL_HTTP_FRAMING, /* header block complete: the caller decides what follows */
	TL_HTTP_BODY, /* `remain` bytes */
	TL_HTTP_CHUNK_SIZE,
	TL_HTTP_CHUNK_EXT,
	TL_HTTP_CHUNK_DATA, /* `remain` bytes */
	TL_HTTP_CHUNK_END, /* CR LF behind the data */
	TL_HTTP_TRAILER_START,
	TL_HTTP_TRAILER,
	TL_HTTP_TRAILER_BLANK,
	TL_HTTP_PROXY_LINE, /* the PROXY protocol's header in front of the first request: a line */
	TL_HTTP_PROXY_BINARY, /* its second version: signature, version, family and length */
	TL_HTTP_PROXY_DATA, /* `remain` bytes of the second version */
	TL_HTTP_UNTIL_CLOSE, /* the body ends with the connection */
	TL_HTTP_TUNNEL, /* after CONNECT or an upgrade: what follows is not HTTP */
	TL_HTTP_LOST, /* bytes were missed, or they are not HTTP */
};

enum tl_header {
	TL_HEADER_TRACEPARENT = 0,
	TL_HEADER_TRACESTATE,
	TL_HEADER_TRANSFER_ENCODING,
	TL_HEADER_CONTENT_LENGTH,
	TL_HEADER_HOST,
	TL_HEADERS,
	TL_HEADER_NONE = 0xff,
};

enum tl_member {
	TL_MEMBER_START = 0,
	TL_MEMBER_KEY,
	TL_MEMBER_VALUE,
};

enum tl_http_flags {
	TL_HTTP_CHUNKED = 1 << 0, /* last transfer coding is chunked */
	TL_HTTP_HAS_LENGTH = 1 << 1,
	TL_HTTP_HAS_ENCODING = 1 << 2,
	TL_HTTP_MALFORMED = 1 << 3,
	/* 1 << 4 to 1 << 7: enum tl_header_flags */
	TL_HTTP_BLANK_SEEN = 1 << 8, /* blank_at is valid for the current send */
	TL_HTTP_RESPONSE = 1 << 9, /* this direction carries responses */
	TL_HTTP_LATER = 1 << 10, /* not the first message of the connection */
};

/* The state of the parser in one direction. */
struct tl_http {
	__u64 remain; /* bytes left of the body or chunk; value of the number being read */
	__u64 token; /* the last eight letters of a transfer coding */
	__u32 header_bytes;
	__u32 blank_at; /* offset in the current send at which the empty line starts */
	__u32 data; /* bytes seen of the current body or chunk, at most 2^31 */
	__u16 flags; /* enum tl_http_flags */
	__u16 pos; /* position in the current element */
	__u16 status;
	__u8 state; /* enum tl_http_state */
	__u8 header; /* enum tl_header, while in its value */
	__u8 names; /* one bit for each header whose name still fits; in a value: enum tl_value_flags */
	__u8 minor;
	__u8 members; /* of tracestate */
	__u8 member; /* enum tl_member: where in a tracestate member */
	__u8 empty_lines;
	__u8 _pad;
	__u16 fields; /* header lines of the message */
	__u32 traceparent_at; /* offset of its value in the current send, or TL_HTTP_NOWHERE */
};

/* Makes the parser ready for the message that comes next in its direction. */
static __always_inline void tl_http_begin(struct tl_http *http)
{
	http->state = TL_HTTP_START;
	http->remain = 0;
	http->header_bytes = 0;
	http->pos = 0;
	http->empty_lines = 0;
	http->fields = 0;
}

/* The same after a message: the next one is not the first of the connection. */
static __always_inline void tl_http_restart(struct tl_http *http)
{
	http->flags &= TL_HTTP_RESPONSE;
	http->flags |= TL_HTTP_LATER;
	tl_http_begin(http);
}

/* Is it known where the message ends, as a TCP sequence number, of which half are ahead? */
static __always_inline bool tl_ends_soon(const struct tl_http *http)
{
	return http->state == TL_HTTP_BODY && http->remain < 1U << 31;
}

/* Counts bytes of a body or chunk, for tl_http_back(). */
static __always_inline void tl_http_seen(struct tl_http *http, __u32 bytes)
{
	if (http->data < 1U << 31)
		http->data += bytes;
}

/*
 * Returns how many of the next `left` bytes are body and need not be read; they count as parsed.
 * The last byte of a body is left for the parser, which ends the message with it.
 */
static __always_inline __u32 tl_http_skip(struct tl_http *http, __u32 left)
{
	__u64 skip = left;

	if (http->state != TL_HTTP_BODY && http->state != TL_HTTP_CHUNK_DATA)
		return 0;
	if (skip >= http->remain)
		skip = http->remain - 1;
	http->remain -= (__u32)skip;
	return skip;
}

/*
 * The last `bytes` that were parsed were not sent and will come again. Steps back where they were
 * body. False: they were not body.
 */
static __always_inline bool tl_http_back(struct tl_http *http, __u32 bytes)
{
	switch (http->state) {
	case TL_HTTP_BODY:
	case TL_HTTP_CHUNK_DATA:
		break;
	case TL_HTTP_START:
		/* the body was complete; a message without a body has no bytes to step back over */
		http->state = TL_HTTP_BODY;
		break;
	case TL_HTTP_CHUNK_END:
		if (http->pos)
			bytes--;
		http->pos = 0;
		http->state = TL_HTTP_CHUNK_DATA;
		break;
	case TL_HTTP_CHUNK_SIZE:
		if (http->pos || !http->data)
			return false;
		/* CR LF behind the data */
		http->state = TL_HTTP_CHUNK_END;
		http->pos = bytes == 1;
		if (bytes <= 2)
			return true;
		bytes -= 2;
		http->state = TL_HTTP_CHUNK_DATA;
		break;
	default:
		return false;
	}
	if (bytes > http->data)
		return false;
	if (!bytes && http->state == TL_HTTP_CHUNK_DATA && !http->remain)
		http->state = TL_HTTP_CHUNK_END;
	http->data -= bytes;
	http->remain += bytes;
	return true;
}

/* `bytes` were sent without being parsed. True where they were body, at most up to its end. */
static __always_inline bool tl_http_ahead(struct tl_http *http, __u32 bytes)
{
	if ((http->state != TL_HTTP_BODY && http->state != TL_HTTP_CHUNK_DATA) ||
	    bytes > http->remain)
		return false;
	http->remain -= bytes;
	tl_http_seen(http, bytes);
	if (http->remain)
		return true;
	if (http->state == TL_HTTP_CHUNK_DATA)
		http->state = TL_HTTP_CHUNK_END;
	else
		tl_http_restart(http);
	return true;
}

/*
 * To be called after TL_FEED_HEADERS: finds out what follows the header block (RFC 9112 section
 * 6.3). `method` is the request's, also for a response. Returns true when the message ends here.
 */
static __always_inline bool tl_http_frame(struct tl_http *http, __u8 method)
{
	http->data = 0;
	if (http->flags & TL_HTTP_RESPONSE) {
		if (http->status == 101 ||
		    (method == TL_METHOD_CONNECT && http->status >= 200 && http->status < 300)) {
			http->state = TL_HTTP_TUNNEL;
			return true;
		}
		if (http->status < 200 || http->status == 204 || http->status == 304 ||
		    method == TL_METHOD_HEAD)
			return true;
	}
	if (http->flags & TL_HTTP_MALFORMED) {
		http->state = TL_HTTP_LOST;
		return false;
	}
	if (http->flags & TL_HTTP_CHUNKED) {
		http->state = TL_HTTP_CHUNK_SIZE;
		http->pos = 0;
		http->remain = 0;
		return false;
	}
	if (http->flags & TL_HTTP_HAS_LENGTH) {
		if (!http->remain)
			return true;
		http->state = TL_HTTP_BODY;
		return false;
	}
	if (http->flags & TL_HTTP_RESPONSE) {
		http->state = TL_HTTP_UNTIL_CLOSE;
		return false;
	}
	return true;
}

#endif
