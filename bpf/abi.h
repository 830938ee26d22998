/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * abi.h - everything that crosses between the BPF programs and Python.
 *
 * This is the one source: agent/throughline/kernel/abi.py is generated from the BTF of the
 * compiled object (`make bpf` rewrites it, a unit test refuses drift), and an object whose
 * TL_ABI_VERSION differs is refused at load. Fixed-width fields and explicit padding only;
 * constants are enums, since macros are not in BTF.
 */
#ifndef THROUGHLINE_ABI_H
#define THROUGHLINE_ABI_H

enum tl_abi {
	TL_ABI_VERSION = 1,
	TL_METHOD_MAX = 16,
	TL_TARGET_MAX = 256,
	TL_HOST_MAX = 128,
	TL_TRACESTATE_MAX = 512,
	TL_BUCKETS = 15, /* 14 bounds, see TL_BOUNDS in http.bpf.h */
};

enum tl_kind {
	TL_KIND_SERVER = 1,
	TL_KIND_CLIENT = 2,
};

/* How the parent of a span was found, strongest first (DESIGN: finding the parent). */
enum tl_evidence {
	TL_EVIDENCE_NONE = 0, /* no parent: the span is the root of a new trace */
	TL_EVIDENCE_HEADER = 1, /* the message itself carried a traceparent */
	TL_EVIDENCE_CONNECT = 2, /* the connection was made while the request was current */
	TL_EVIDENCE_RESTORE = 3, /* the thread read the answer of an earlier call of the request */
	TL_EVIDENCE_THREAD = 4, /* the thread read the request */
};

/* Why a span ended. */
enum tl_end {
	TL_END_COMPLETE = 0, /* the response was seen whole */
	TL_END_CLOSED = 1, /* the connection closed inside the exchange */
	TL_END_CLOSE_DELIMITED = 2, /* the response has no length: it ends with the connection */
};

/*
 * One finished, sampled span. The record in the ring buffer is cut after `tracestate_len` bytes
 * of tracestate. Times are CLOCK_MONOTONIC nanoseconds; ports are in host order; IPv4 addresses
 * are IPv4-mapped IPv6.
 */
struct tl_span {
	__u64 start_ns;
	__u64 end_ns;
	__u64 cgroup_id;
	__u8 trace_id[16];
	__u8 span_id[8];
	__u8 parent_span_id[8]; /* all zero: none */
	__u8 local_addr[16];
	__u8 peer_addr[16];
	__u16 local_port;
	__u16 peer_port;
	__u16 status; /* HTTP status code, 0: none was seen */
	__u8 kind; /* enum tl_kind */
	__u8 evidence; /* enum tl_evidence */
	__u8 trace_flags;
	__u8 http_minor; /* HTTP/1.x */
	__u8 end; /* enum tl_end */
	__u8 method_len;
	__u16 target_len; /* length on the wire; at most TL_TARGET_MAX bytes of it are kept */
	__u16 host_len;
	__u16 tracestate_len;
	__u16 _pad;
	__u32 pid; /* thread group that read the request (server) or wrote it (client), or 0 */
	char method[TL_METHOD_MAX];
	char host[TL_HOST_MAX];
	char target[TL_TARGET_MAX];
	char tracestate[TL_TRACESTATE_MAX];
};

#endif
