/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * go/writing.h - calls into whose header a context is to be written: decided by `go`, written by
 * `go_write`.
 */
#ifndef THROUGHLINE_GO_WRITING_H
#define THROUGHLINE_GO_WRITING_H

#include "go/exchange.h"

/*
 * Into which request a context is to be written, and how the place is recognised where its header
 * is written. It is written once. `go` makes an entry only where it is proven that the header has
 * no context.
 */
enum tl_go_writing_kind {
	TL_GO_WRITING_BUFFER = 1, /* HTTP/1: the header `object`, a map, is written to the buffer */
	TL_GO_WRITING_STREAM, /* HTTP/2: the goroutine writes it, for `object`, a *clientStream */
	TL_GO_WRITING_CALL, /* gRPC: the goroutine hands it to a *controlBuffer; `object`: its path */
	TL_GO_WRITING_FIELDS, /* gRPC: the fields wait in `object`, a *controlBuffer */
	TL_GO_WRITING_FRAME, /* gRPC: the goroutine writes it, for the stream `stream_id` */
};

struct tl_go_writing {
	__u64 exchange; /* key of tl_go_exchanges */
	__u64 span; /* the span of that exchange: when the call has ended, another one may have the same key */
	__u64 object; /* the address by which the place is recognised; 0 for TL_GO_WRITING_FRAME */
	__u32 stream_id;
	__u32 kind; /* enum tl_go_writing_kind */
};

/*
 * By tl_process_key() of the goroutine that writes the header, or hands the call to the one that
 * writes it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_go_writing);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_go_writers SEC(".maps");

/* By tl_go_object_key() of the *bufio.Writer or slice of fields that another goroutine writes. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_go_writing);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_go_written SEC(".maps");

#endif
