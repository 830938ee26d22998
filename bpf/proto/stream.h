/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* proto/stream.h - both directions of a connection, and the chunks in which they are parsed. */
#ifndef THROUGHLINE_PROTO_STREAM_H
#define THROUGHLINE_PROTO_STREAM_H

#include "core/maps.h"
#include "proto/http1.h"

#define TL_CHUNK \
	128 /* bytes parsed at a time: they are on the stack, since a program may be preempted */
#define TL_TURNS 4 /* elements parsed in each call of tl_http_turns() */
/*
 * The most chunks that are parsed in a packet or send, in two loops that the verifier walks
 * separately. Together they are 1 MB. A packet is at most 512 KB (GSO_MAX_SIZE), and what sk_msg
 * shows at once is less.
 */
#define TL_CHUNKS_MAX 128
#define TL_ROUNDS_MAX 64

enum tl_direction {
	TL_IN = 0,
	TL_OUT = 1,
};

struct tl_chunk {
	__u32 len;
	__u32 pos;
	__u32 base; /* offset of data[0] in the packet or send */
	__u32 _pad;
	__u8 data[TL_CHUNK + 8];
};

/*
 * What is kept of a connection. The map is declared here since on older kernels the parser has to
 * look up its own state. struct tl_flow (trace/flow.h) begins with a struct tl_stream.
 */
struct tl_flow;

struct {
	TL_SOCKET_MAP(struct tl_flow);
} tl_flows SEC(".maps");

#ifdef TL_LEGACY
struct tl_stream {
	struct tl_http http[2]; /* by enum tl_direction */
	struct tl_chunk chunk[2]; /* a function could not be given the address of one on the stack */
};

/* An object whose flows are not sockets has a map of its own: it defines TL_FLOWS before this. */
#ifndef TL_FLOWS
#define TL_FLOWS tl_flows
#endif

#define TL_STREAM __u64 cookie, __u32 direction
#define TL_GIVE_STREAM(flow, text, direction, chunk) (flow)->cookie, direction
#define TL_GIVE_STREAM_ON(http, text, chunk) cookie, direction
/*
 * The addresses are computed behind the check: verifiers refuse arithmetic on pointers that may be
 * NULL.
 */
#define TL_TAKE_STREAM(http, text, chunk)                             \
	struct tl_stream *stream = tl_kept(&TL_FLOWS, cookie, false); \
	struct tl_text *text = TL_TEXT_FIND(, cookie);                \
	struct tl_http *http = NULL;                                  \
	struct tl_chunk *chunk = NULL;                                \
	if (stream) {                                                 \
		http = &stream->http[direction & 1];                  \
		chunk = &stream->chunk[direction & 1];                \
		asm volatile("" : "+r"(http), "+r"(chunk));           \
	}

#define TL_CHUNK_OF(flow, direction, chunk) struct tl_chunk *chunk = &(flow)->chunk[direction & 1]
#else
#define TL_STREAM struct tl_http *http, struct tl_text *text, struct tl_chunk *chunk
#define TL_GIVE_STREAM(flow, text, direction, chunk) tl_http_of(flow, direction), text, chunk
#define TL_GIVE_STREAM_ON(http, text, chunk) http, text, chunk
#define TL_TAKE_STREAM(http, text, chunk)

#define TL_CHUNK_OF(flow, direction, chunk) \
	struct tl_chunk _##chunk = {};      \
	struct tl_chunk *chunk = &_##chunk
#endif

#endif
