/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * proto/http1.h - a resumable HTTP/1.x parser (RFC 9112), a few bytes at a time.
 *
 * It follows the framing of one direction of a connection exactly, since the start of the next
 * message must be known, and keeps the few header values that matter. Whatever it does not
 * understand makes the direction LOST or the message MALFORMED; it never guesses.
 */
#ifndef THROUGHLINE_HTTP_H
#define THROUGHLINE_HTTP_H

#include "core/tl.h"

enum tl_feed {
	TL_FEED_MORE = 0, /* the chunk is used up */
	TL_FEED_HEADERS, /* a header block is complete: call tl_http_frame() */
	TL_FEED_MESSAGE, /* a message with a body has ended */
	TL_FEED_LOST,
};

#define TL_NAME_MAX 24
#define TL_MEMBER_PART_MAX 256 /* key or value of a tracestate member */
#define TL_PROXY_LINE_MAX 107 /* bytes of the PROXY protocol's first version, with CR LF */
#define TL_PROXY_SIGNATURE_BYTES 12 /* that its second version begins with */

/* In a value, tl_http.names has no names to tell apart: */
enum tl_value_flags {
	TL_VALUE_SPACE = 1 << 0, /* white space behind the value */
	TL_VALUE_CR = 1 << 1, /* the last byte was CR */
	TL_VALUE_TAB = 1 << 2, /* a tab behind a tracestate value */
};

/* not static: libbpf places only global variables of .rodata */
const char tl_version[8] = "HTTP/1.";
const __u8 tl_proxy_signature[16] = "\r\n\r\n\0\r\nQUIT\n";
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

/* RFC 9110 token characters, which a method and a header name are made of. */
static __always_inline bool tl_is_token(__u8 c)
{
	if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'))
		return true;
	switch (c) {
	case '!':
	case '#':
	case '$':
	case '%':
	case '&':
	case '\'':
	case '*':
	case '+':
	case '-':
	case '.':
	case '^':
	case '_':
	case '`':
	case '|':
	case '~':
		return true;
	}
	return false;
}

/* Bit of each byte that is LF; `word` is read little-endian. */
static __always_inline __u64 tl_find_lf(__u64 word)
{
	__u64 x = word ^ 0x0a0a0a0a0a0a0a0aULL;

	return (x - 0x0101010101010101ULL) & ~x & 0x8080808080808080ULL;
}

/* The value of the last header line cannot be relied on. */
static __always_inline void tl_http_bad_value(struct tl_http *http)
{
	http->flags |= TL_HTTP_MALFORMED;
	if (http->header == TL_HEADER_TRACEPARENT)
		http->flags |= TL_HTTP_BAD_TRACEPARENT;
	else if (http->header == TL_HEADER_TRACESTATE)
		http->flags |= TL_HTTP_BAD_TRACESTATE;
}

/* Ends a header line: its value is complete. `header` stays, for a folded line that follows. */
static __always_inline void tl_http_end_value(struct tl_http *http, struct tl_text *text)
{
	switch (http->header) {
	case TL_HEADER_TRANSFER_ENCODING:
		/* "chunked" as the last coding; pos counts the letters of the last one */
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
		/* a last member without a value is refused, an empty one is allowed */
		if (http->member == TL_MEMBER_KEY ||
		    (http->member == TL_MEMBER_VALUE && !http->pos))
			http->flags |= TL_HTTP_BAD_TRACESTATE;
		break;
	}
}

/*
 * One byte of a tracestate value (W3C Trace Context Level 2, section 3.3). `pos` counts the bytes of
 * the key or value, `token` the spaces behind the value so far: they belong to it only when it goes
 * on.
 */
static __always_inline void tl_http_tracestate(struct tl_http *http, struct tl_text *text, __u8 c)
{
	__u32 at = text->tracestate_len;

	switch (http->member) {
	case TL_MEMBER_START:
		if (c == ' ' || c == '\t' || c == ',')
			return;
		if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) || http->members >= 32)
			http->flags |= TL_HTTP_BAD_TRACESTATE;
		else
			http->members++;
		http->member = TL_MEMBER_KEY;
		http->pos = 0;
		if (at) {
			if (at < TL_TRACESTATE_MAX)
				text->tracestate[at] = ',';
			at++;
		}
		break;
	case TL_MEMBER_KEY:
		if (c == '=') {
			http->member = TL_MEMBER_VALUE;
			http->pos = 0;
			http->token = 0;
			http->names = 0;
			if (at < TL_TRACESTATE_MAX)
				text->tracestate[at] = c;
			else
				http->flags |= TL_HTTP_BAD_TRACESTATE;
			text->tracestate_len = at + 1;
			return;
		}
		if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
		      c == '*' || c == '/' || c == '@'))
			http->flags |= TL_HTTP_BAD_TRACESTATE;
		break;
	default:
		if (c == ',') {
			if (!http->pos)
				http->flags |= TL_HTTP_BAD_TRACESTATE;
			http->member = TL_MEMBER_START;
			return;
		}
		if (c == '\t') {
			http->names |= TL_VALUE_TAB;
			return;
		}
		if (c == ' ') {
			at += http->token;
			if (at < TL_TRACESTATE_MAX) {
				text->tracestate[at] = c;
				http->token++;
			} else {
				http->token = TL_TRACESTATE_MAX;
			}
			return;
		}
		if (c < 0x21 || c > 0x7e || c == '=' || http->names & TL_VALUE_TAB)
			http->flags |= TL_HTTP_BAD_TRACESTATE;
		at += http->token;
		http->pos += http->token;
		http->token = 0;
	}
	if (++http->pos > TL_MEMBER_PART_MAX || at >= TL_TRACESTATE_MAX) {
		/* what is refused need not be counted on */
		http->flags |= TL_HTTP_BAD_TRACESTATE;
		http->pos = TL_MEMBER_PART_MAX;
		return;
	}
	text->tracestate[at] = c;
	text->tracestate_len = at + 1;
}

/* One byte of a header value that matters. */
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
			http->flags |= TL_HTTP_BAD_TRACEPARENT;
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
			/* two words in one coding: not ours to interpret */
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
		if (http->flags & TL_HTTP_HAS_TRACEPARENT)
			http->flags |= TL_HTTP_BAD_TRACEPARENT;
		http->flags |= TL_HTTP_HAS_TRACEPARENT;
		text->traceparent_len = 0;
		break;
	case TL_HEADER_TRACESTATE:
		http->flags |= TL_HTTP_HAS_TRACESTATE;
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

/* The same behind another message: what comes next is not the first of the connection. */
static __always_inline void tl_http_restart(struct tl_http *http)
{
	http->flags &= TL_HTTP_SYNCED | TL_HTTP_RESPONSE;
	http->flags |= TL_HTTP_LATER;
	tl_http_begin(http);
}

/*
 * The PROXY protocol of HAProxy: a proxy tells the server whom it speaks for, in front of the first
 * request of a connection. Version 1 is a line, `PROXY TCP4 …`; version 2 begins with a signature.
 */
static __always_inline bool tl_proxy_may_begin(const struct tl_http *http)
{
	return !(http->flags & (TL_HTTP_LATER | TL_HTTP_RESPONSE));
}

/* `PROXY ` was taken for a method, and `c` follows. */
static __always_inline bool tl_is_proxy_line(const struct tl_http *http, const struct tl_text *text,
					     __u8 c)
{
	return !http->pos && (c == 'T' || c == 'U') && text->method_len == 5 &&
	       (*(const __u64 *)text->method & 0xffffffffffULL) == 0x59584f5250ULL &&
	       tl_proxy_may_begin(http);
}

/*
 * One byte of version 2, from the end of its signature on; `pos` counts. False: it is none.
 * Behind the signature: version and command, family, length of what follows.
 */
static __always_inline bool tl_proxy_binary(struct tl_http *http, __u8 c)
{
	__u32 at = http->pos;

	http->pos++;
	if (at < TL_PROXY_SIGNATURE_BYTES)
		return c == tl_proxy_signature[at & 15];
	switch (at) {
	case 12:
		return c >> 4 == 2;
	case 13:
		return true;
	case 14:
		http->remain = (__u32)c << 8;
		return true;
	}
	http->remain |= c;
	if (http->remain)
		http->state = TL_HTTP_PROXY_DATA;
	else
		tl_http_begin(http);
	return true;
}

/* May bytes be the start of version 2? */
static __always_inline bool tl_begins_proxy(const __u8 *start, __u32 n)
{
	__u32 i;

	for (i = 0; i < TL_PROXY_SIGNATURE_BYTES; i++) {
		if (i >= n)
			break;
		if (start[i] != tl_proxy_signature[i])
			return false;
	}
	return true;
}

/* Counts bytes of a body or chunk, for tl_http_back(). */
static __always_inline void tl_http_seen(struct tl_http *http, __u32 bytes)
{
	if (http->data < 1U << 31)
		http->data += bytes;
}

/*
 * How many of the next `left` bytes are body and need not be read; they count as parsed. The last
 * byte of a body is left to the parser, which ends the message with it.
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
 * The last `bytes` that were parsed were not sent after all and will come again. Steps back where
 * they were body; false when they were not.
 */
static __always_inline bool tl_http_back(struct tl_http *http, __u32 bytes)
{
	switch (http->state) {
	case TL_HTTP_BODY:
	case TL_HTTP_CHUNK_DATA:
		break;
	case TL_HTTP_START:
		/* a body that was complete; of a message without one nothing was seen */
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

/* `bytes` went by unseen. True where they were body, up to its end at most. */
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

static __always_inline int tl_http_lost(struct tl_http *http)
{
	http->state = TL_HTTP_LOST;
	return TL_FEED_LOST;
}

/* The header block is complete. */
static __always_inline int tl_http_headers(struct tl_http *http)
{
	http->state = TL_HTTP_FRAMING;
	/* both lengths, an unknown one, or one that HTTP/1.0 has not: peers may disagree on the end */
	if (!(http->flags & TL_HTTP_RESPONSE) && http->flags & TL_HTTP_HAS_ENCODING &&
	    (http->flags & TL_HTTP_HAS_LENGTH || !(http->flags & TL_HTTP_CHUNKED) || !http->minor))
		http->flags |= TL_HTTP_MALFORMED;
	return TL_FEED_HEADERS;
}

/*
 * The next TL_TURNS elements of tl_http_feed(). Few, because the verifier walks each turn on its own:
 * it keeps what it proved about the loop's counter apart from one turn to the next.
 */
__noinline int tl_http_turns(TL_STREAM)
{
	TL_TAKE_STREAM(http, text, chunk);
	__u32 i;

	if (!http || !text || !chunk)
		return TL_FEED_LOST;

	for (i = 0; i < TL_TURNS; i++) {
		__u32 pos = chunk->pos;
		__u32 at;
		__u64 left;
		__u8 c;

		if (pos >= chunk->len || pos >= TL_CHUNK)
			return TL_FEED_MORE;

		/* The rest of a line that does not matter: eight bytes at a time. */
		if (http->state == TL_HTTP_SKIP) {
			__u64 word = *(__u64 *)&chunk->data[pos];
			__u64 lf = tl_find_lf(word);

			if (!lf) {
				pos += 8;
			} else {
				if (!(lf & 0xffffffffULL)) {
					pos += 4;
					lf >>= 32;
				}
				if (!(lf & 0xffffULL)) {
					pos += 2;
					lf >>= 16;
				}
				if (!(lf & 0xffULL))
					pos += 1;
				pos += 1;
				if (pos <= chunk->len)
					http->state = TL_HTTP_NAME_START;
			}
			if (pos > chunk->len)
				pos = chunk->len;
			http->header_bytes += pos - chunk->pos;
			chunk->pos = pos;
			continue;
		}
		if (http->state == TL_HTTP_BODY || http->state == TL_HTTP_CHUNK_DATA ||
		    http->state == TL_HTTP_PROXY_DATA) {
			left = chunk->len - pos;
			if (left > http->remain)
				left = http->remain;
			http->remain -= left;
			tl_http_seen(http, left);
			chunk->pos = pos + left;
			if (http->remain)
				continue;
			if (http->state == TL_HTTP_CHUNK_DATA) {
				http->state = TL_HTTP_CHUNK_END;
				continue;
			}
			if (http->state == TL_HTTP_PROXY_DATA) {
				tl_http_begin(http);
				continue;
			}
			return TL_FEED_MESSAGE;
		}
		if (http->state >= TL_HTTP_UNTIL_CLOSE) {
			chunk->pos = chunk->len;
			return TL_FEED_MORE;
		}

		c = chunk->data[pos];
		chunk->pos = pos + 1;
		http->header_bytes++;

		switch (http->state) {
		case TL_HTTP_START:
			if (c == '\r' || c == '\n') {
				if (++http->empty_lines > 8)
					return tl_http_lost(http);
				http->header_bytes = 0;
				continue;
			}
			http->header = TL_HEADER_NONE;
			http->pos = 1;
			if (http->flags & TL_HTTP_RESPONSE) {
				/* `text` is the request's, which is needed for its span */
				if (c != 'H')
					return tl_http_lost(http);
				http->state = TL_HTTP_STATUS;
				http->status = 0;
				continue;
			}
			text->traceparent_len = 0;
			text->host_len = 0;
			text->tracestate_len = 0;
			http->members = 0;
			if (!c && http->empty_lines == 4 && tl_proxy_may_begin(http)) {
				http->pos = 5; /* CR LF CR LF and this byte */
				http->state = TL_HTTP_PROXY_BINARY;
				continue;
			}
			if (!tl_is_token(c))
				return tl_http_lost(http);
			text->method[0] = c;
			text->method_len = 1;
			text->target_len = 0;
			http->state = TL_HTTP_METHOD;
			continue;

		case TL_HTTP_METHOD:
			if (c == ' ') {
				text->method_len = http->pos;
				http->pos = 0;
				http->state = TL_HTTP_TARGET;
				continue;
			}
			at = http->pos;
			if (!tl_is_token(c) || at >= TL_METHOD_MAX)
				return tl_http_lost(http);
			text->method[at] = c;
			http->pos++;
			continue;

		case TL_HTTP_TARGET:
			if (c == ' ') {
				if (!http->pos)
					return tl_http_lost(http);
				text->target_len = http->pos;
				http->pos = 0;
				http->state = TL_HTTP_VERSION;
				continue;
			}
			if (c < 0x21 || c == 0x7f || http->header_bytes > TL_HEADER_BYTES_MAX)
				return tl_http_lost(http);
			if (tl_is_proxy_line(http, text, c)) {
				http->state = TL_HTTP_PROXY_LINE;
				continue;
			}
			at = http->pos;
			if (at < TL_TARGET_MAX)
				text->target[at] = c;
			http->pos++;
			continue;

		case TL_HTTP_VERSION:
			at = http->pos;
			http->pos++;
			if (at < 7) {
				if (c != tl_version[at & 7])
					return tl_http_lost(http);
				continue;
			}
			if (at == 7) {
				if (c != '0' && c != '1')
					return tl_http_lost(http);
				http->minor = c - '0';
				continue;
			}
			if (at == 8 && c == '\r')
				continue;
			if (c != '\n')
				return tl_http_lost(http);
			http->state = TL_HTTP_NAME_START;
			continue;

		case TL_HTTP_STATUS:
			at = http->pos;
			http->pos++;
			if (at < 7) {
				if (c != tl_version[at & 7])
					return tl_http_lost(http);
			} else if (at == 7) {
				if (c != '0' && c != '1')
					return tl_http_lost(http);
				http->minor = c - '0';
			} else if (at == 8) {
				if (c != ' ')
					return tl_http_lost(http);
			} else {
				if (c < '0' || c > '9')
					return tl_http_lost(http);
				http->status = http->status * 10 + (c - '0');
				if (at == 11)
					http->state = TL_HTTP_SKIP;
			}
			continue;

		case TL_HTTP_NAME_START:
			if (c == '\r' || c == '\n') {
				http->blank_at = chunk->base + pos;
				http->flags |= TL_HTTP_BLANK_SEEN;
				if (c == '\n')
					return tl_http_headers(http);
				http->state = TL_HTTP_BLANK;
				continue;
			}
			if (http->header_bytes > TL_HEADER_BYTES_MAX)
				return tl_http_lost(http);
			if (c == ' ' || c == '\t') {
				/* a folded line continues a value that was taken for complete */
				tl_http_bad_value(http);
				http->state = TL_HTTP_SKIP;
				continue;
			}
			http->fields++;
			http->header = TL_HEADER_NONE;
			http->pos = 1;
			http->state = TL_HTTP_NAME;
			switch (c | 0x20) {
			case 't':
				http->names = 1 << TL_HEADER_TRACEPARENT |
					      1 << TL_HEADER_TRACESTATE |
					      1 << TL_HEADER_TRANSFER_ENCODING;
				if (http->flags & TL_HTTP_RESPONSE)
					http->names = 1 << TL_HEADER_TRANSFER_ENCODING;
				continue;
			case 'c':
				http->names = 1 << TL_HEADER_CONTENT_LENGTH;
				continue;
			case 'h':
				if (http->flags & TL_HTTP_RESPONSE)
					break;
				http->names = 1 << TL_HEADER_HOST;
				continue;
			}
			http->state = TL_HTTP_SKIP;
			continue;

		case TL_HTTP_NAME: {
			__u8 names = http->names;

			if (c == ':') {
				tl_http_begin_value(http, text);
				continue;
			}
			if (c == '\n') {
				http->state = TL_HTTP_NAME_START;
				http->flags |= TL_HTTP_MALFORMED;
				continue;
			}
			/* White space before the colon: a receiver may or may not see the header. */
			if (c == ' ' || c == '\t')
				http->flags |= TL_HTTP_MALFORMED;
			at = http->pos;
			c = tl_lower(c);
			if (at >= TL_NAME_MAX)
				names = 0;
			at &= 31;
			if (at < TL_NAME_MAX) {
				if (tl_names[TL_HEADER_TRACEPARENT][at] != c)
					names &= ~(1 << TL_HEADER_TRACEPARENT);
				if (tl_names[TL_HEADER_TRACESTATE][at] != c)
					names &= ~(1 << TL_HEADER_TRACESTATE);
				if (tl_names[TL_HEADER_TRANSFER_ENCODING][at] != c)
					names &= ~(1 << TL_HEADER_TRANSFER_ENCODING);
				if (tl_names[TL_HEADER_CONTENT_LENGTH][at] != c)
					names &= ~(1 << TL_HEADER_CONTENT_LENGTH);
				if (tl_names[TL_HEADER_HOST][at] != c)
					names &= ~(1 << TL_HEADER_HOST);
			}
			http->names = names;
			http->pos++;
			if (!names)
				http->state = TL_HTTP_SKIP;
			continue;
		}

		case TL_HTTP_VALUE:
			if (c == '\n') {
				tl_http_end_value(http, text);
				http->state = TL_HTTP_NAME_START;
				continue;
			}
			if (http->names & TL_VALUE_CR) {
				/* CR inside a value: receivers disagree on what it is */
				tl_http_bad_value(http);
				continue;
			}
			if (c == '\r') {
				http->names |= TL_VALUE_CR;
				continue;
			}
			tl_http_value(http, text, c);
			continue;

		case TL_HTTP_BLANK:
			if (c != '\n')
				return tl_http_lost(http);
			return tl_http_headers(http);

		case TL_HTTP_CHUNK_SIZE: {
			__u8 digit;

			c = tl_lower(c);
			if (c >= '0' && c <= '9') {
				digit = c - '0';
			} else if (c >= 'a' && c <= 'f') {
				digit = c - 'a' + 10;
			} else {
				if (!http->pos)
					return tl_http_lost(http);
				http->state = TL_HTTP_CHUNK_EXT;
				if (c == '\n')
					goto chunk_begins;
				continue;
			}
			if (++http->pos > 12)
				return tl_http_lost(http);
			http->remain = http->remain << 4 | digit;
			continue;
		}

		case TL_HTTP_CHUNK_EXT:
			if (c != '\n')
				continue;
chunk_begins:
			http->state = http->remain ? TL_HTTP_CHUNK_DATA : TL_HTTP_TRAILER_START;
			http->data = 0;
			http->pos = 0;
			http->header_bytes = 0;
			continue;

		case TL_HTTP_CHUNK_END:
			if (c == '\r') {
				http->pos = 1;
				continue;
			}
			if (c != '\n')
				return tl_http_lost(http);
			/* without CR nobody could step back to where the data ended */
			if (!http->pos)
				http->data = 0;
			http->state = TL_HTTP_CHUNK_SIZE;
			http->pos = 0;
			http->remain = 0;
			continue;

		case TL_HTTP_TRAILER_START:
			if (c == '\r') {
				http->state = TL_HTTP_TRAILER_BLANK;
				continue;
			}
			if (c == '\n')
				return TL_FEED_MESSAGE;
			http->state = TL_HTTP_TRAILER;
			continue;

		case TL_HTTP_TRAILER:
			if (c == '\n')
				http->state = TL_HTTP_TRAILER_START;
			continue;

		case TL_HTTP_TRAILER_BLANK:
			if (c != '\n')
				return tl_http_lost(http);
			return TL_FEED_MESSAGE;

		case TL_HTTP_PROXY_LINE:
			if (c == '\n')
				tl_http_begin(http);
			else if (http->header_bytes >= TL_PROXY_LINE_MAX)
				return tl_http_lost(http);
			continue;

		case TL_HTTP_PROXY_BINARY:
			if (!tl_proxy_binary(http, c))
				return tl_http_lost(http);
			continue;

		default:
			return tl_http_lost(http);
		}
	}
	return TL_FEED_MORE;
}

/*
 * Parses chunk->data[chunk->pos .. chunk->len) and moves chunk->pos.
 * Returns enum tl_feed; on anything but TL_FEED_MORE the caller acts and calls again. After
 * TL_FEED_MORE too, should chunk->pos not have come to chunk->len.
 */
__noinline int tl_http_feed(TL_STREAM)
{
	TL_TAKE_STREAM(http, text, chunk);
	int what = TL_FEED_LOST;
	__u32 i;

	if (!http || !text || !chunk)
		return TL_FEED_LOST;
	/* a turn takes a byte, eight, or a body; two more for those that take none */
	for (i = 0; i < TL_CHUNK / TL_TURNS + 2; i++) {
		what = tl_http_turns(TL_GIVE_STREAM_ON(http, text, chunk));
		if (what != TL_FEED_MORE || chunk->pos >= chunk->len)
			break;
	}
	return what;
}

/* Known methods by their letters, up to eight, little-endian. */
static __always_inline __u8 tl_method_code(const struct tl_text *text)
{
	__u64 word = *(__u64 *)text->method;
	__u32 len = text->method_len;

	if (!len || len > 7)
		return TL_METHOD_OTHER;
	word &= ~0ULL >> (64 - 8 * len);
	switch (word) {
	case 0x544547ULL:
		return TL_METHOD_GET;
	case 0x44414548ULL:
		return TL_METHOD_HEAD;
	case 0x54534f50ULL:
		return TL_METHOD_POST;
	case 0x545550ULL:
		return TL_METHOD_PUT;
	case 0x4554454c4544ULL:
		return TL_METHOD_DELETE;
	case 0x5443454e4e4f43ULL:
		return TL_METHOD_CONNECT;
	case 0x534e4f4954504fULL:
		return TL_METHOD_OPTIONS;
	case 0x4543415254ULL:
		return TL_METHOD_TRACE;
	case 0x4843544150ULL:
		return TL_METHOD_PATCH;
	}
	return TL_METHOD_OTHER;
}

/*
 * Limits that servers have unless their operators chose others. Our lines must not carry a request over
 * one of them (docs/propagation.md#limits-of-servers).
 */
enum tl_limit {
	TL_LIMIT_FIELDS = 100, /* many; http.server of Python takes 99 */
	TL_LIMIT_8K = 8192, /* Tomcat, Jetty, Netty, lighttpd */
	TL_LIMIT_HAPROXY = 15360, /* tune.bufsize - tune.maxrewrite */
	TL_LIMIT_16K = 16384, /* Node.js, h11 */
};

#define TL_HAPROXY_FIELD 4 /* bytes that HAProxy needs beside those of a line, */
#define TL_HAPROXY_HEAD 80 /* and of the header block */

static __always_inline bool tl_limits_matter(void)
{
	const struct tl_settings *settings = tl_settings_now();

	return settings && settings->limits;
}

/* Is a limit kept by what is counted as `least` without our lines, and reached by `most`, with them? */
static __always_inline bool tl_reaches(__s32 least, __s32 most, enum tl_limit limit)
{
	return least <= (__s32)limit && most >= (__s32)limit;
}

/*
 * Would `lines` more header lines, of `bytes`, carry the header block over a limit that it keeps without
 * them? Servers do not count the same bytes: what separates names, values and lines counts or not
 * (Node.js), and so does the request line (Netty). So a range is compared with a limit.
 */
static __always_inline bool tl_near_limit(const struct tl_http *http, const struct tl_text *text,
					  __u32 bytes, __u32 lines)
{
	__s32 first = text->method_len + 12; /* of the request line all but the target */
	__s32 between = 4 * http->fields + 2; /* `: ` and CR LF of each field, and the empty line */
	__s32 least = http->header_bytes - first - between;
	__s32 most = http->header_bytes + bytes;
	__s32 haproxy = TL_HAPROXY_FIELD * (http->fields + lines) + TL_HAPROXY_HEAD;

	return tl_limits_matter() &&
	       (tl_reaches(http->fields, http->fields + lines, TL_LIMIT_FIELDS) ||
		tl_reaches(least, most, TL_LIMIT_8K) ||
		tl_reaches(least - text->target_len, most - first - text->target_len,
			   TL_LIMIT_8K) ||
		tl_reaches(least, most + haproxy, TL_LIMIT_HAPROXY) ||
		tl_reaches(least, most, TL_LIMIT_16K));
}

/*
 * After TL_FEED_HEADERS: what follows the header block (RFC 9112 section 6.3). `method` is that
 * of the request, for a response too. Returns true when the message ends here.
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
