/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* io/fastcgi_packets.h - parses FastCGI in packets. */
#ifndef THROUGHLINE_IO_FASTCGI_PACKETS_H
#define THROUGHLINE_IO_FASTCGI_PACKETS_H

#include "io/stream.h"

#ifndef TL_LEGACY
#include "io/fastcgi.h"

static __always_inline bool tl_starts_fastcgi(struct __sk_buff *skb,
					      const struct tl_segment *segment)
{
	return segment->len >= TL_FASTCGI_BEGIN_BYTES && tl_begins_in_fastcgi(skb, segment->off);
}

/* The connection carries FastCGI. */
static __always_inline void tl_turns_fastcgi(struct tl_flow *flow, struct bpf_sock *sk)
{
	flow->protocol = TL_PROTOCOL_FASTCGI;
	if (!sk || !tl_fastcgi_make(sk))
		flow->role = TL_ROLE_OFF;
}

/* What is kept of one direction of the packet's connection, or NULL. */
static __always_inline struct tl_fastcgi *tl_fastcgi_of(struct __sk_buff *skb, __u32 direction)
{
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return NULL;
	sk = bpf_sk_fullsock(sk);
	return sk ? tl_fastcgi_find(sk, direction) : NULL;
}

/* The header block of a request is complete. */
static __always_inline void tl_fastcgi_asked(struct tl_flow *flow, struct tl_text *text)
{
	if (flow->role == TL_ROLE_SERVER)
		tl_flow_serves(flow, text);
	else
		tl_packet_asks(flow, text);
}

/* Acts on what was found in a packet. A global function, which the verifier walks once. */
__noinline int tl_fastcgi_packet_event(struct tl_flow *flow, struct tl_text *text, __u32 direction,
				       __u32 what)
{
	if (!flow || !text || what == TL_FEED_MORE)
		return 0;
	/* segments of a body may carry a context, too: it is not the next request's */
	if (what == TL_FEED_MESSAGE && direction == TL_IN && flow->role == TL_ROLE_SERVER)
		tl_incoming_used(flow->endpoints.socket);
	tl_fastcgi_event(flow, text, tl_http_of(flow, direction), what, tl_fastcgi_asked);
	return 0;
}

/* The same as tl_packet_chunk(). */
__noinline int tl_fastcgi_packet(struct __sk_buff *skb, struct tl_flow *flow, struct tl_text *text,
				 __u64 range, __u32 direction)
{
	struct tl_chunk chunk = {};
	struct tl_fastcgi *fastcgi;
	struct tl_http *http;
	__u32 off = range >> 32;
	__u32 end = range;
	__u32 skipped, n;
	int what;

	if (!flow || !text)
		return 0;
	http = tl_http_of(flow, direction);
	if (flow->role == TL_ROLE_OFF || http->state >= TL_HTTP_UNTIL_CLOSE)
		return 0;
	fastcgi = tl_fastcgi_of(skb, direction);
	if (!fastcgi)
		return 0;
	skipped = tl_fastcgi_skip(fastcgi, end - off);
	off += skipped;
	if (off >= end)
		return skipped;
	n = end - off;
	if (n > TL_CHUNK)
		n = TL_CHUNK;
	if (bpf_skb_load_bytes(skb, off, chunk.data, tl_length(n, TL_CHUNK))) {
		tl_count(TL_LOST_GAP);
		http->state = TL_HTTP_LOST;
		return 0;
	}
	chunk.len = n;
	what = tl_fastcgi_feed(http, text, &chunk, fastcgi);
	if (what == TL_FEED_LOST)
		return -1;
	return tl_went(skipped + chunk.pos, what);
}

/* The same as tl_packet_chunks(). */
__noinline int tl_fastcgi_packets(struct __sk_buff *skb, struct tl_flow *flow, struct tl_text *text,
				  __u64 range, __u32 direction)
{
	__u64 off = range >> 32;
	__u32 end = range;
	__u32 i;

	if (!flow || !text)
		return 0;
	for (i = 0; i < TL_CHUNKS_MAX && off < end; i++) {
		int went = tl_fastcgi_packet(skb, flow, text, off << 32 | end, direction);

		if (went <= 0)
			return went;
		off += went & TL_WENT_MAX;
		tl_fastcgi_packet_event(flow, text, direction, went >> TL_WENT_BITS);
	}
	return off - (range >> 32);
}

/*
 * `bytes` were not seen, or will come later. True where they are body. A global function, which the
 * verifier walks once.
 */
__noinline int tl_fastcgi_passes(struct __sk_buff *skb, struct tl_flow *flow, struct tl_text *text,
				 __u32 direction, __u32 bytes)
{
	struct tl_fastcgi *fastcgi = tl_fastcgi_of(skb, direction);
	struct tl_http *http;

	asm volatile("" ::"r"(text));
	if (!flow || !fastcgi)
		return false;
	http = tl_http_of(flow, direction);
	return http->state < TL_HTTP_UNTIL_CLOSE && tl_fastcgi_ahead(http, fastcgi, bytes);
}

/*
 * A direction that cannot be followed any more is parsed again from the start of a record on. A global
 * function, as above.
 */
__noinline int tl_fastcgi_forgets(struct __sk_buff *skb, __u32 direction)
{
	struct tl_fastcgi *fastcgi = tl_fastcgi_of(skb, direction);

	if (fastcgi)
		__builtin_memset(fastcgi, 0, sizeof(*fastcgi));
	return 0;
}
#else
static __always_inline bool tl_starts_fastcgi(struct __sk_buff *skb,
					      const struct tl_segment *segment)
{
	return false;
}

static __always_inline void tl_turns_fastcgi(struct tl_flow *flow, struct bpf_sock *sk)
{
}

static __always_inline bool tl_fastcgi_passes(struct __sk_buff *skb, __u64 cookie, __u32 direction,
					      __u32 bytes)
{
	return false;
}

static __always_inline int tl_fastcgi_packets(struct __sk_buff *skb, __u64 cookie, __u64 range,
					      __u32 direction)
{
	return 0;
}

static __always_inline void tl_fastcgi_forgets(struct __sk_buff *skb, __u32 direction)
{
}
#endif

#endif
