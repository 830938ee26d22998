/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * proto/stream.h - both directions of a connection, and the chunks in which they are parsed.
 */
#ifndef THROUGHLINE_PROTO_STREAM_H
#define THROUGHLINE_PROTO_STREAM_H

#include "core/maps.h"
#include "proto/http1.h"

#define TL_CHUNK \
	128 /* bytes parsed at a time: they live on the stack, which preemption cannot share */
#define TL_TURNS 8 /* elements parsed in each call of tl_http_turns() */
/*
 * Chunks parsed in each packet or send: 1 MB, more than either can be (GSO_MAX_SIZE is 512 KB, and
 * what sk_msg shows at once less). In two loops: the verifier walks each on its own.
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
 * What is kept of a connection. The map is declared here for the older kernels, on which the parser
 * has to look up what it parses. struct tl_flow (trace/flow.h) begins with a struct tl_stream.
 */
struct tl_flow;

struct {
	TL_SOCKET_MAP(struct tl_flow);
} tl_flows SEC(".maps");

#ifdef TL_LEGACY
struct tl_stream {
	struct tl_http http[2]; /* by enum tl_direction */
	struct tl_chunk chunk[2]; /* the one on the stack could not be given to a function */
};

/* An object whose connections are not sockets defines maps of its own before this. */
#ifndef TL_FLOWS
#define TL_FLOWS tl_flows
#endif

#define TL_STREAM __u64 cookie, __u32 direction
#define TL_GIVE_STREAM(flow, text, direction, chunk) (flow)->cookie, direction
#define TL_GIVE_STREAM_ON(http, text, chunk) cookie, direction
/* The addresses are made behind the check: verifiers refuse arithmetic on what may be NULL. */
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
