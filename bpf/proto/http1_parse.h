/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * proto/http1_parse.h - a resumable parser of HTTP/1.x (RFC 9112), a few bytes at a time.
 *
 * It follows the framing of one direction of a connection exactly, to find the start of the next
 * message, and keeps the few header values that are needed. Bytes that it does not understand make
 * the direction LOST or the message MALFORMED; it never guesses.
 */
#ifndef THROUGHLINE_PROTO_HTTP1_PARSE_H
#define THROUGHLINE_PROTO_HTTP1_PARSE_H

#include "proto/http1_values.h"
#include "proto/proxy.h"
#include "proto/stream.h"

enum tl_feed {
	TL_FEED_MORE = 0, /* the chunk is used up */
	TL_FEED_HEADERS, /* a header block is complete: call tl_http_frame() */
	TL_FEED_MESSAGE, /* a message with a body has ended */
	TL_FEED_LOST,
	TL_FEED_BEGIN, /* FastCGI: a request begins */
};

const char tl_version[8] = "HTTP/1.";

/* Is the byte a token character of RFC 9110? Methods and header names consist of these. */
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

/* Returns a word with the highest bit of each byte set that is LF in `word`. */
static __always_inline __u64 tl_find_lf(__u64 word)
{
	__u64 x = word ^ 0x0a0a0a0a0a0a0a0aULL;

	return (x - 0x0101010101010101ULL) & ~x & 0x8080808080808080ULL;
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
	/*
	 * two lengths, an unknown coding, or a coding in HTTP/1.0: peers may disagree on where the
	 * message ends
	 */
	if (!(http->flags & TL_HTTP_RESPONSE) && http->flags & TL_HTTP_HAS_ENCODING &&
	    (http->flags & TL_HTTP_HAS_LENGTH || !(http->flags & TL_HTTP_CHUNKED) || !http->minor))
		http->flags |= TL_HTTP_MALFORMED;
	return TL_FEED_HEADERS;
}

/*
 * Parses the next TL_TURNS elements for tl_http_feed(). They are few, because the verifier walks
 * each turn on its own: the loop's counter makes each turn another state to it.
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

		/* Skips the rest of a line, eight bytes at a time. */
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
				/* the request's text is not overwritten: its span needs it */
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
				/*
				 * a folded line: it continues a value that was taken for complete
				 */
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
			/*
			 * White space before the colon: some receivers accept such a header, others
			 * ignore it.
			 */
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
				/* CR inside a value: receivers disagree on its meaning */
				tl_http_bad_value(http);
				continue;
			}
			if (c == '\r') {
				http->names |= TL_VALUE_CR;
				continue;
			}
			if (http->header == TL_HEADER_TRACEPARENT && !http->pos)
				http->traceparent_at = chunk->base + pos;
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
			/* without CR, tl_http_back() could not tell where the data ended */
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
 * Parses chunk->data[chunk->pos .. chunk->len) and moves chunk->pos. Returns enum tl_feed. On
 * anything but TL_FEED_MORE the caller acts and calls again. It also calls again after TL_FEED_MORE
 * when chunk->pos has not reached chunk->len.
 */
__noinline int tl_http_feed(TL_STREAM)
{
	TL_TAKE_STREAM(http, text, chunk);
	int what = TL_FEED_LOST;
	__u32 i;

	if (!http || !text || !chunk)
		return TL_FEED_LOST;
	/* a turn takes at least a byte, but for two turns that may take none */
	for (i = 0; i < TL_CHUNK / TL_TURNS + 2; i++) {
		what = tl_http_turns(TL_GIVE_STREAM_ON(http, text, chunk));
		if (what != TL_FEED_MORE || chunk->pos >= chunk->len)
			break;
	}
	return what;
}

#endif
