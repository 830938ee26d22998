/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * proto/proxy.h - the PROXY protocol of HAProxy: a proxy tells the server for which client it
 * speaks, in front of the first request of a connection. Version 1 is a line, `PROXY TCP4 …`;
 * version 2 begins with a signature.
 */
#ifndef THROUGHLINE_PROTO_PROXY_H
#define THROUGHLINE_PROTO_PROXY_H

#include "proto/http1.h"
#include "wire/detect.h"

#define TL_PROXY_LINE_MAX 107 /* bytes of the first version, with CR LF */

static __always_inline bool tl_proxy_may_begin(const struct tl_http *http)
{
	return !(http->flags & (TL_HTTP_LATER | TL_HTTP_RESPONSE));
}

/* Was `PROXY ` taken for a method? `c` is the byte that follows. */
static __always_inline bool tl_is_proxy_line(const struct tl_http *http, const struct tl_text *text,
					     __u8 c)
{
	return !http->pos && (c == 'T' || c == 'U') && text->method_len == 5 &&
	       (*(const __u64 *)text->method & 0xffffffffffULL) == 0x59584f5250ULL &&
	       tl_proxy_may_begin(http);
}

/*
 * Parses one byte of version 2, from the end of its signature on; `pos` counts the bytes. Behind
 * the signature come version and command, the family, and the length of the rest. False: it is not
 * version 2.
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

#endif
