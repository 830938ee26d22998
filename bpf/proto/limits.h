/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * proto/limits.h - default limits of servers. Our header lines must not push a request over one of
 * them.
 */
#ifndef THROUGHLINE_PROTO_LIMITS_H
#define THROUGHLINE_PROTO_LIMITS_H

#include "core/settings.h"
#include "proto/http1.h"

enum tl_limit {
	TL_LIMIT_UWSGI = 4096, /* uWSGI with FastCGI, which may be set to 8192 or 16384 */
	TL_LIMIT_FIELDS = 100, /* many; http.server of Python takes 99 */
	TL_LIMIT_8K = 8192, /* Tomcat, Jetty, Netty, lighttpd */
	TL_LIMIT_HAPROXY = 15360, /* tune.bufsize - tune.maxrewrite */
	TL_LIMIT_16K = 16384, /* Node.js, h11 */
};

#define TL_HAPROXY_FIELD 4 /* bytes that HAProxy needs for each line in addition to its text */
#define TL_HAPROXY_HEAD 80 /* bytes that HAProxy needs for a header block in addition to its text */

static __always_inline bool tl_limits_matter(void)
{
	const struct tl_settings *settings = tl_settings_now();

	return settings && settings->limits;
}

/*
 * Is the request within a limit without our lines (counted as `least`), and at the limit with them
 * (`most`)?
 */
static __always_inline bool tl_reaches(__s32 least, __s32 most, enum tl_limit limit)
{
	return least <= (__s32)limit && most >= (__s32)limit;
}

/*
 * The same for `bytes` of a record of FastCGI. uWSGI counts the parameters with two bytes for each
 * length, which are one or four here. PHP-FPM has a limit for each record only.
 */
static __always_inline bool tl_near_fastcgi_limit(const struct tl_http *http, __u32 bytes)
{
	__s32 least = http->header_bytes - 4 * http->fields;
	__s32 most = http->header_bytes + bytes + 2 * (http->fields + 2);

	return tl_limits_matter() &&
	       (tl_reaches(least, most, TL_LIMIT_UWSGI) || tl_reaches(least, most, TL_LIMIT_8K) ||
		tl_reaches(least, most, TL_LIMIT_16K));
}

/*
 * Would `lines` more header lines, `bytes` long, push the header block over a limit? Servers count
 * in different ways: separators of names, values and lines may count or not (Node.js), and so may
 * the request line (Netty). So a range is compared with each limit.
 */
static __always_inline bool tl_near_limit(const struct tl_http *http, const struct tl_text *text,
					  __u32 bytes, __u32 lines)
{
	__s32 first = text->method_len + 12; /* the request line without its target */
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

#endif
