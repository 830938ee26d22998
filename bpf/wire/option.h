/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * wire/option.h - a context beside the bytes: the TCP option that carries it, and what came in one.
 *
 * Kind 25, the layout of OpenTelemetry eBPF Instrumentation: trace id and span id, of a trace that is sampled.
 * Of one that is not, the flags follow, which makes it a length that others do not know and leave alone.
 * Read by observe (docs/packets.md has the rules), written by packets.
 */
#ifndef THROUGHLINE_OPTION_H
#define THROUGHLINE_OPTION_H

#include "core/tl.h"

#define TL_OPTION_KIND 25
#define TL_OPTION_SAMPLED_BYTES 26
#define TL_OPTION_BYTES 27
#define TL_OPTION_SPACE 28 /* in the header, whose length is a multiple of four */
#define TL_OPTION_WINDOW (1 << 20) /* bytes ahead of what was received that a segment may be */

struct tl_option {
	__u8 kind;
	__u8 len;
	__u8 trace_id[16];
	__u8 span_id[8];
	__u8 trace_flags;
} __attribute__((packed));

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* socket cookie */
	__type(value, struct tl_incoming);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_incoming SEC(".maps");

/* Who may send us contexts, and whom we send them to. */
struct tl_peer_key {
	__u32 prefix; /* bits of the address that count */
	__u8 addr[16]; /* IPv4 as IPv4-mapped IPv6 */
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tl_peer_key);
	__type(value, __u8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_peers SEC(".maps");

/*
 * The context of a request that a thread is handing to its TLS library: the bytes that it sends next
 * are that request. Written by tls, taken by packets.
 */
struct tl_tls_out {
	__u64 key; /* of the TLS connection */
	__u64 socket; /* cookie of the socket that sent it, once that is known */
	__u8 trace_id[16];
	__u8 span_id[8];
	__u8 trace_flags;
	__u8 pending;
	__u8 _pad[6];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32); /* thread */
	__type(value, struct tl_tls_out);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_tls_outs SEC(".maps");

/* The same by socket, where another thread may send: written by go. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* socket cookie */
	__type(value, struct tl_tls_out);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_socket_outs SEC(".maps");

static __always_inline bool tl_is_peer(const __u8 *address)
{
	struct tl_peer_key key = { .prefix = 128 };

	__builtin_memcpy(key.addr, address, 16);
	return bpf_map_lookup_elem(&tl_peers, &key);
}

static __always_inline bool tl_any(const __u8 *id, __u32 bytes)
{
	__u32 i, any = 0;

	for (i = 0; i < bytes; i++)
		any |= id[i];
	return any;
}

/*
 * The connection has begun a message that its context cannot be for, or has taken it: what came until
 * now is for nobody else.
 */
static __always_inline void tl_option_used(__u64 socket)
{
	struct tl_incoming *incoming;

	if (!socket)
		return;
	incoming = bpf_map_lookup_elem(&tl_incoming, &socket);
	if (incoming)
		incoming->fresh = 0;
}

/* Takes the context that came beside a request, and returns its flags. -1: there is none. */
static __always_inline int tl_take_option(struct tl_conn *conn)
{
	struct tl_incoming *incoming;
	__u64 socket = conn->socket;

	if (!socket)
		return -1;
	incoming = bpf_map_lookup_elem(&tl_incoming, &socket);
	if (!incoming || !incoming->fresh)
		return -1;
	incoming->fresh = 0;
	__builtin_memcpy(conn->trace_id, incoming->trace_id, 16);
	__builtin_memcpy(conn->parent_span_id, incoming->span_id, 8);
	tl_count(TL_OPTION_TAKEN);
	return incoming->trace_flags;
}

#endif
