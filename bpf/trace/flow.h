/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * trace/flow.h - a connection that carries HTTP/1 or FastCGI: a TCP connection, or the inside of a TLS
 * connection.
 */
#ifndef THROUGHLINE_TRACE_FLOW_H
#define THROUGHLINE_TRACE_FLOW_H

#include "core/counters.h"
#include "proto/http1_parse.h"
#include "trace/exchange.h"
#include "wire/address.h"
#include "wire/segment.h"

enum tl_role {
	TL_ROLE_UNKNOWN = 0,
	TL_ROLE_SERVER,
	TL_ROLE_CLIENT,
	TL_ROLE_OFF, /* not HTTP, not traced, or given up: it is ignored */
};

enum tl_protocol {
	TL_PROTOCOL_HTTP = 0,
	TL_PROTOCOL_FASTCGI,
};

enum tl_flow_flags {
	TL_FLOW_ENROLLED = 1 << 0, /* in the sockhash */
	TL_FLOW_FIRST = 1 << 1, /* its request is the first that it carries */
	TL_FLOW_USED = 1 << 2, /* has carried a request */
	TL_FLOW_OPAQUE = 1 << 3, /* client connection of another protocol: a database, TLS, … */
	TL_FLOW_ANSWERED = 1 << 4, /* opaque: something was read since the last write */
	TL_FLOW_CONNECTED = 1 << 5, /* client: we saw it being made; `connect` is valid */
	TL_FLOW_LEAVES = 1 << 6, /* leaves the sockhash once its request is acknowledged */
	TL_FLOW_PIPELINED = 1 << 7, /* is ignored once the present exchange has ended */
	TL_FLOW_EARLY =
		1
		<< 8, /* in tl_early: there is no connection yet, and perhaps there never is one */
	TL_FLOW_MPTCP = 1 << 9, /* client: Multipath TCP, whose sends sk_msg does not see */
	TL_FLOW_INSIDE = 1 << 10, /* inside a TLS connection: its socket may not be known */
	TL_FLOW_CALLED = 1 << 11, /* inside: the TLS library has been called for it */
	TL_FLOW_UNTRACED = 1 << 12, /* on a Unix socket: only the other end may be traced */
	TL_FLOW_BY_WRITER =
		1
		<< 13, /* client: the packet leaves in the system call of the thread that writes */
	TL_FLOW_ASKED =
		1 << 14, /* client: whose the last call is was asked, whatever the answer was */
	TL_FLOW_ASKS =
		1 << 15, /* on a Unix socket: a call has begun, whose parent is not asked for yet */
};

/* What each packet reads is in front, in few cache lines. */
struct tl_flow {
	struct tl_http in;
	struct tl_http out;
#ifdef TL_LEGACY
	struct tl_chunk chunk[2]; /* see struct tl_stream */
	__u64 cookie; /* the key of this entry */
#endif
	struct tl_sequence sequence[2]; /* by enum tl_direction */
	__u16 flags; /* enum tl_flow_flags */
	__u16 early_header; /* TL_FLOW_EARLY: enum tl_header_flags of the request that has begun */
	__u8 role; /* enum tl_role */
	__u8 protocol; /* on TCP: enum tl_protocol */
	__u8 _pad[2];
	__u32 unsent; /* inside: bytes that were parsed but not written: they come again */
	__u32 busy[2]; /* one parser at a time in each direction */
	__u8 _pad2[4];
	struct tl_exchange exchange; /* HTTP/1 has one at a time */
	struct tl_endpoints endpoints;
	__u64 cgroup_id;
	__u64 connect; /* client: the request during which the connection was made */
	__u64 caller; /* client: the request that the last call was made for, kept until the next call */
	/*
	 * opaque: the request that wrote last, or 0 when that is not known. Inside: the request that
	 * a process of Node.js has shown for bytes that could not be sent yet, or 0
	 */
	__u64 writer;
	__u32 pid; /* client: the process that made the connection, or its last call */
	__u32 born; /* when that process began: see tl_born() */
	__u32 tid; /* client: the thread that made the connection, or its last call */
	__u8 likely; /* client: `connect` is likely, not proven */
	__u8 _pad3[3];
};

/* Does the TCP connection carry FastCGI? Objects for older kernels do not follow that. */
static __always_inline bool tl_is_in_fastcgi(const struct tl_flow *flow)
{
#ifdef TL_LEGACY
	return false;
#else
	return flow->protocol == TL_PROTOCOL_FASTCGI;
#endif
}

static __always_inline struct tl_http *tl_http_of(struct tl_flow *flow, __u32 direction)
{
	return direction == TL_IN ? &flow->in : &flow->out;
}

#ifdef TL_LEGACY
_Static_assert(__builtin_offsetof(struct tl_flow, out) ==
			       __builtin_offsetof(struct tl_stream, http[1]) &&
		       __builtin_offsetof(struct tl_flow, chunk) ==
			       __builtin_offsetof(struct tl_stream, chunk),
	       "a flow begins with a stream");

static __always_inline struct tl_flow *tl_make_flow(__u64 cookie)
{
	struct tl_flow *flow = tl_kept(&TL_FLOWS, cookie, true);

	if (flow)
		flow->cookie = cookie;
	return flow;
}

#define TL_FLOW_FIND(sk, cookie) ((struct tl_flow *)tl_kept(&TL_FLOWS, cookie, false))
#define TL_FLOW_MAKE(sk, cookie) tl_make_flow(cookie)

#define TL_FLOW __u64 cookie
#define TL_GIVE_FLOW(flow, text) (flow)->cookie
#define TL_TAKE_FLOW(flow, text)                       \
	struct tl_flow *flow = TL_FLOW_FIND(, cookie); \
	struct tl_text *text = TL_TEXT_FIND(, cookie)

#define TL_EXCHANGE __u64 cookie
#define TL_GIVE_EXCHANGE(flow, text) (flow)->cookie
/*
 * The addresses are computed behind the check: verifiers refuse arithmetic on pointers that may be
 * NULL.
 */
#define TL_TAKE_EXCHANGE(exchange, text, endpoints)                 \
	struct tl_flow *flow = TL_FLOW_FIND(, cookie);              \
	struct tl_text *text = TL_TEXT_FIND(, cookie);              \
	struct tl_exchange *exchange = NULL;                        \
	struct tl_endpoints *endpoints = NULL;                      \
	if (flow) {                                                 \
		exchange = &flow->exchange;                         \
		endpoints = &flow->endpoints;                       \
		asm volatile("" : "+r"(exchange), "+r"(endpoints)); \
	}
#else
#define TL_FLOW_FIND(sk, cookie) ((struct tl_flow *)bpf_sk_storage_get(&tl_flows, sk, NULL, 0))
#define TL_FLOW_MAKE(sk, cookie) \
	bpf_sk_storage_get(&tl_flows, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE)

#define TL_FLOW struct tl_flow *flow, struct tl_text *text
#define TL_GIVE_FLOW(flow, text) flow, text
#define TL_TAKE_FLOW(flow, text)

#define TL_EXCHANGE \
	struct tl_exchange *exchange, struct tl_text *text, struct tl_endpoints *endpoints
#define TL_GIVE_EXCHANGE(flow, text) &(flow)->exchange, text, &(flow)->endpoints
#define TL_TAKE_EXCHANGE(exchange, text, endpoints)
#endif

#endif
