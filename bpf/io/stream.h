/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* io/stream.h - what packets begin with, and parses HTTP/1 in them. */
#ifndef THROUGHLINE_IO_STREAM_H
#define THROUGHLINE_IO_STREAM_H

#include "core/registers.h"
#include "evidence/find.h"
#include "proto/fastcgi.h"
#include "trace/http1.h"

enum tl_start {
	TL_START_NONE = 0,
	TL_START_HTTP,
	TL_START_FASTCGI,
};

#ifndef TL_LEGACY
/* Does a request of FastCGI begin at this offset? A global function, which the verifier walks once. */
__noinline int tl_begins_in_fastcgi(struct __sk_buff *skb, __u32 off)
{
	__u8 start[TL_FASTCGI_BEGIN_BYTES];

	return !bpf_skb_load_bytes(skb, off, start, sizeof(start)) && tl_is_fastcgi(start);
}
#endif

/* What begins here: a request, or the PROXY protocol in front of the first one? */
static __always_inline enum tl_start tl_looks_like_start(struct __sk_buff *skb,
							 const struct tl_segment *segment)
{
	__u32 n = segment->len < 16 ? segment->len : 16;
	__u8 start[16] = {};

	if (n < 1 || bpf_skb_load_bytes(skb, segment->off, start, tl_length(n, 16)))
		return TL_START_NONE;
	if (tl_begins_request(start, n < 4 ? n : 4) || tl_begins_proxy(start, n))
		return TL_START_HTTP;
#ifndef TL_LEGACY
	if (n == TL_FASTCGI_BEGIN_BYTES && start[0] == TL_FASTCGI_VERSION &&
	    tl_begins_in_fastcgi(skb, segment->off))
		return TL_START_FASTCGI;
#endif
	return TL_START_NONE;
}

/* Does a request begin here, on a connection of this protocol? */
static __always_inline bool tl_looks_like_request(struct __sk_buff *skb,
						  const struct tl_segment *segment,
						  enum tl_protocol protocol)
{
	__u32 n = segment->len < 4 ? segment->len : 4;
	__u8 start[4] = {};

#ifndef TL_LEGACY
	if (protocol == TL_PROTOCOL_FASTCGI)
		return tl_begins_in_fastcgi(skb, segment->off);
#endif
	if (n < 1 || bpf_skb_load_bytes(skb, segment->off, start, tl_length(n, 4)))
		return false;
	return tl_begins_request(start, n);
}

/*
 * Does the packet leave in a system call of the thread that writes? A thread that sends owns the
 * socket meanwhile; no other thread and no interrupt sends for it then. A global function, which the
 * verifier walks once.
 */
__noinline int tl_by_writer(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct tcp_sock *tcp = sk ? bpf_skc_to_tcp_sock(sk) : NULL;

	return tcp && BPF_CORE_READ(tcp, inet_conn.icsk_inet.sk.sk_lock.owned) && tl_in_send();
}

/*
 * A call on a socket that sk_msg does not see. It carries no context, but has a parent where the
 * thread is known. A global function, which the verifier walks once.
 */
__noinline int tl_packet_asks(TL_FLOW)
{
	TL_TAKE_FLOW(flow, text);
	struct tl_parent parent = {};
	bool found = false;

	if (!flow || !text)
		return 0;
	tl_count(flow->flags & TL_FLOW_MPTCP ? TL_SKIP_MPTCP : TL_SKIP_NOT_ENROLLED);
	flow->flags &= ~TL_FLOW_ASKED;
	if (flow->flags & TL_FLOW_BY_WRITER) {
		flow->flags |= TL_FLOW_ASKED;
		flow->pid = tl_current_ids() >> 32;
		flow->born = tl_process_born();
		found = tl_find_parent(flow, &parent);
	} else {
		found = tl_find_claimed(flow, &parent);
	}
	tl_flow_calls(flow, text, found ? &parent : NULL);
	return 0;
}

static __always_inline void tl_call_unwritten(struct tl_flow *flow, struct tl_text *text)
{
	tl_packet_asks(TL_GIVE_FLOW(flow, text));
}

/*
 * Acts on what the parser has found in a packet. A global function: the verifier walks it once, and
 * not for each turn of the loop that calls it.
 */
__noinline int tl_packet_event(TL_FLOW, __u32 direction, __u32 what)
{
	TL_TAKE_FLOW(flow, text);

	if (flow && text && what != TL_FEED_MORE)
		tl_stream_event(flow, text, direction, what, tl_call_unwritten);
	return 0;
}

/*
 * Parses the next chunk of the packet. `range`: the offset of the first byte in the upper half,
 * that behind the last byte in the lower. Returns tl_went(), 0 when the rest need not be parsed, -1
 * when it is not HTTP. A global function, which the verifier walks once.
 */
__noinline int tl_packet_chunk(struct __sk_buff *skb, TL_FLOW, __u64 range, __u32 direction)
{
	TL_TAKE_FLOW(flow, text);
	struct tl_http *http;
	__u32 off = range >> 32;
	__u32 end = range;
	__u32 skipped, n;
	int what;

	if (!flow || !text)
		return 0;
	TL_CHUNK_OF(flow, direction, chunk);
	http = tl_http_of(flow, direction);
	if (flow->role == TL_ROLE_OFF || http->state >= TL_HTTP_UNTIL_CLOSE)
		return 0;
	skipped = tl_http_skip(http, end - off);
	off += skipped;
	if (off >= end)
		return skipped;
	n = end - off;
	if (n > TL_CHUNK)
		n = TL_CHUNK;
	if (bpf_skb_load_bytes(skb, off, chunk->data, tl_length(n, TL_CHUNK))) {
		tl_count(TL_LOST_GAP);
		http->state = TL_HTTP_LOST;
		return 0;
	}
	if (!tl_chunk_ready(flow, text, http, chunk, n, 0))
		return 0;
	what = tl_http_feed(TL_GIVE_STREAM(flow, text, direction, chunk));
	if (what != TL_FEED_MORE && what != TL_FEED_HEADERS && what != TL_FEED_MESSAGE)
		return -1;
	return tl_went(skipped + chunk->pos, what);
}

/*
 * Parses up to TL_CHUNKS_MAX chunks, and acts on them. Returns how many bytes it has parsed, 0 when
 * the rest need not be parsed, -1 when it is not HTTP. A global function: a packet may have more
 * chunks than the verifier would walk in one loop.
 */
__noinline int tl_packet_chunks(struct __sk_buff *skb, TL_FLOW, __u64 range, __u32 direction)
{
	TL_TAKE_FLOW(flow, text);
	__u64 off = range >> 32;
	__u32 end = range;
	__u32 i;

	if (!flow || !text)
		return 0;
	for (i = 0; i < TL_CHUNKS_MAX && off < end; i++) {
		int went =
			tl_packet_chunk(skb, TL_GIVE_FLOW(flow, text), off << 32 | end, direction);

		if (went <= 0)
			return went;
		off += went & TL_WENT_MAX;
		tl_packet_event(TL_GIVE_FLOW(flow, text), direction, went >> TL_WENT_BITS);
	}
	return off - (range >> 32);
}

#endif
