/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * trace/beside.h - contexts that travel in a TCP option, beside the bytes of a request: received
 * ones, and those that are going to be sent.
 */
#ifndef THROUGHLINE_TRACE_BESIDE_H
#define THROUGHLINE_TRACE_BESIDE_H

#include "core/counters.h"
#include "proto/w3c.h"

/* The context that came last in a TCP option with the segments of a connection. */
struct tl_incoming {
	struct tl_context context;
	__u8 fresh; /* no request has begun since it came */
	__u8 _pad[7];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* socket cookie */
	__type(value, struct tl_incoming);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_incoming SEC(".maps");

/*
 * The context of a request that is about to be sent, by a program that sees the request but does
 * not send its bytes. `packets` takes it for the bytes that leave next.
 */
struct tl_outgoing {
	struct tl_context context;
	__u64 socket; /* cookie of the socket that sends it, or 0 when that is not known */
	__u8 pending;
	__u8 _pad[7];
};

/* By thread: the thread that hands over the request also sends it. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct tl_outgoing);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_thread_outs SEC(".maps");

/* By the socket's cookie: another thread may send it. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct tl_outgoing);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_socket_outs SEC(".maps");

/*
 * The connection has begun a message that the context cannot belong to, or a request has taken it:
 * no later request gets a context that came before.
 */
static __always_inline void tl_incoming_used(__u64 socket)
{
	struct tl_incoming *incoming;

	if (!socket)
		return;
	incoming = bpf_map_lookup_elem(&tl_incoming, &socket);
	if (incoming)
		incoming->fresh = 0;
}

/* Takes the context that came beside a request, and returns its flags. -1: there is none. */
static __always_inline int tl_take_incoming(__u64 socket, __u8 *trace_id, __u8 *parent_span_id)
{
	struct tl_incoming *incoming;

	if (!socket)
		return -1;
	incoming = bpf_map_lookup_elem(&tl_incoming, &socket);
	if (!incoming || !incoming->fresh)
		return -1;
	incoming->fresh = 0;
	__builtin_memcpy(trace_id, incoming->context.trace_id, 16);
	__builtin_memcpy(parent_span_id, incoming->context.span_id, 8);
	tl_count(TL_OPTION_TAKEN);
	return incoming->context.trace_flags;
}

#endif
