/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* trace/exchange.h - one request and its answer. */
#ifndef THROUGHLINE_TRACE_EXCHANGE_H
#define THROUGHLINE_TRACE_EXCHANGE_H

#include "proto/w3c.h"

enum tl_exchange_flags {
	TL_EXCHANGE_ACTIVE = 1 << 0, /* it is under way */
	TL_EXCHANGE_RESPONDING = 1 << 1, /* the answer has begun */
	TL_EXCHANGE_TLS = 1 << 2, /* seen inside TLS */
	TL_EXCHANGE_GRPC = 1 << 3, /* a call of gRPC */
	TL_EXCHANGE_UNIX = 1 << 4, /* on a Unix socket */
	TL_EXCHANGE_LIKELY = 1 << 5, /* the parent is likely, not proven */
	TL_EXCHANGE_PASSED_ON = 1 << 6, /* its traceparent is that of the request it is made for */
	TL_EXCHANGE_READ = 1 << 7, /* server: read before it was parsed; `request` is its key */
};

struct tl_exchange {
	__u8 flags; /* enum tl_exchange_flags */
	__u8 kind; /* enum tl_kind */
	__u8 evidence; /* enum tl_evidence */
	__u8 method; /* enum tl_method */
	__u8 http_major; /* 0: 1 */
	__u8 http_minor;
	/*
	 * For an exchange that only probes see: the counter to raise when it begins; the next
	 * counter is raised when it ends. The difference is what is open, or was lost with an entry
	 * that gave way or a process that died. 0 for others.
	 */
	__u16 probed;
	__u64 request; /* server: the request being served (key of tl_requests), or 0 */
	__u64 start_ns;
	__u64 cgroup_id;
	struct tl_context context;
	__u8 parent_span_id[8];
	__u32 pid; /* the process that has read the request or makes the call, or 0 */
	__u8 _pad[4];
};

#endif
