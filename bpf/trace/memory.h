/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * trace/memory.h - parses HTTP/1 in the memory of the current process: what it reads or writes.
 *
 * The object that includes this defines tl_memory_event(), and TL_MEMORY_LOST: the counter of
 * connections whose bytes could not be read.
 */
#ifndef THROUGHLINE_TRACE_MEMORY_H
#define THROUGHLINE_TRACE_MEMORY_H

#include "trace/http1.h"

/* Acts on what the parser has found (enum tl_feed). A global function, which is walked once. */
__noinline int tl_memory_event(TL_FLOW, __u32 direction, __u32 what);

/*
 * Parses the next chunk of `left` bytes (at most TL_WENT_MAX) at `address` in the process. Returns
 * tl_went(), 0 when the rest need not be parsed, -1 when it is not HTTP. A global function, which
 * the verifier walks once.
 */
__noinline int tl_memory_chunk(TL_FLOW, __u64 address, __u32 left, __u32 direction)
{
	TL_TAKE_FLOW(flow, text);
	struct tl_http *http;
	__u32 skipped, n;
	int what;

	if (!flow || !text)
		return 0;
	TL_CHUNK_OF(flow, direction, chunk);
	http = tl_http_of(flow, direction);
	if (flow->role == TL_ROLE_OFF || http->state >= TL_HTTP_UNTIL_CLOSE)
		return 0;
	skipped = tl_http_skip(http, left);
	tl_http_seen(http, skipped);
	if (skipped >= left)
		return skipped;
	n = left - skipped;
	if (n > TL_CHUNK)
		n = TL_CHUNK;
	if (bpf_probe_read_user(chunk->data, tl_length(n, TL_CHUNK), (void *)(address + skipped))) {
		tl_count(TL_MEMORY_LOST);
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
 * the rest need not be parsed, -1 when it is not HTTP. A global function: a call may write more
 * chunks than the verifier would walk in one loop. tl_packet_chunks() in io/stream.h is the same for
 * packets: a global function cannot be given the one that reads.
 */
__noinline int tl_memory_chunks(TL_FLOW, __u64 address, __u32 left, __u32 direction)
{
	TL_TAKE_FLOW(flow, text);
	__u32 off = 0;
	__u32 i;

	if (!flow || !text)
		return 0;
	if (left > TL_WENT_MAX)
		left = TL_WENT_MAX;
	for (i = 0; i < TL_CHUNKS_MAX && off < left; i++) {
		int went = tl_memory_chunk(TL_GIVE_FLOW(flow, text), address + off, left - off,
					   direction);

		if (went <= 0)
			return went;
		off += went & TL_WENT_MAX;
		tl_memory_event(TL_GIVE_FLOW(flow, text), direction, went >> TL_WENT_BITS);
	}
	return off;
}

/*
 * Parses `length` bytes at `address`. Returns 0, or -1 when they are not HTTP, or too many.
 */
static __always_inline int tl_memory_parse(struct tl_flow *flow, struct tl_text *text,
					   __u64 address, __u64 length, __u32 direction)
{
	__u32 off = 0;
	__u32 i;

	for (i = 0; i < TL_ROUNDS_MAX && off < length; i++) {
		int went = tl_memory_chunks(TL_GIVE_FLOW(flow, text), address + off, length - off,
					    direction);

		if (went <= 0)
			return went;
		off += (__u32)went;
	}
	return off < length ? -1 : 0;
}

#endif
