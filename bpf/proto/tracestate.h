/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* proto/tracestate.h - the value of `tracestate`, a byte at a time. */
#ifndef THROUGHLINE_PROTO_TRACESTATE_H
#define THROUGHLINE_PROTO_TRACESTATE_H

#include "proto/http1.h"

#define TL_MEMBER_PART_MAX 256 /* key or value of a tracestate member */

/* What tl_http.names holds while a value is parsed. */
enum tl_value_flags {
	TL_VALUE_SPACE = 1 << 0, /* white space behind the value */
	TL_VALUE_CR = 1 << 1, /* the last byte was CR */
	TL_VALUE_TAB = 1 << 2, /* a tab behind a tracestate value */
};

/*
 * Parses one byte of a tracestate value (W3C Trace Context Level 2, section 3.3). `pos` counts the
 * bytes of the key or value. `token` counts the spaces at its end: they belong to the value only
 * when more of it follows.
 */
static __always_inline void tl_http_tracestate(struct tl_http *http, struct tl_text *text, __u8 c)
{
	__u32 at = text->tracestate_len;

	switch (http->member) {
	case TL_MEMBER_START:
		if (c == ' ' || c == '\t' || c == ',')
			return;
		if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) || http->members >= 32)
			http->flags |= TL_HEADER_BAD_TRACESTATE;
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
				http->flags |= TL_HEADER_BAD_TRACESTATE;
			text->tracestate_len = at + 1;
			return;
		}
		if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
		      c == '*' || c == '/' || c == '@'))
			http->flags |= TL_HEADER_BAD_TRACESTATE;
		break;
	default:
		if (c == ',') {
			if (!http->pos)
				http->flags |= TL_HEADER_BAD_TRACESTATE;
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
			http->flags |= TL_HEADER_BAD_TRACESTATE;
		at += http->token;
		http->pos += http->token;
		http->token = 0;
	}
	if (++http->pos > TL_MEMBER_PART_MAX || at >= TL_TRACESTATE_MAX) {
		/* refused: the position is not counted any further */
		http->flags |= TL_HEADER_BAD_TRACESTATE;
		http->pos = TL_MEMBER_PART_MAX;
		return;
	}
	text->tracestate[at] = c;
	text->tracestate_len = at + 1;
}

#endif
