/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * go/writing.h - calls into whose header a context is to be written: decided by `go`, written by `go_write`.
 */
#ifndef THROUGHLINE_GO_WRITING_H
#define THROUGHLINE_GO_WRITING_H

#include "go/exchange.h"

/*
 * Into which request a context is to be written, and when: once, by whoever comes to the place where
 * its header is written. Made by `go` where absence of a header is proven.
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
	__u64 span; /* of that exchange: another call may stand there when this one has ended */
	__u64 object; /* an address by which the place is recognised; of TL_GO_WRITING_FRAME 0 */
	__u32 stream_id;
	__u32 kind; /* enum tl_go_writing_kind */
};

/* By tl_process_key() of the goroutine that writes the header, or takes the call to the one that does. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_go_writing);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_go_writers SEC(".maps");

/* By tl_go_object_key() of what another goroutine writes: a *bufio.Writer, or a slice of fields. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_go_writing);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_go_written SEC(".maps");

#endif
