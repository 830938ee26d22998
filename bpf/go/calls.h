/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * go/calls.h - what Go programs serve and ask, shared by `go`, which sees it, and `go_write`,
 * which writes into what is asked.
 */
#ifndef THROUGHLINE_GO_CALLS_H
#define THROUGHLINE_GO_CALLS_H

#include "evidence/exchange.h"

#define TL_FLAGS_CF 0x01
#define TL_FLAGS_ZF 0x40

/*
 * What a goroutine serves or asks that `observe` cannot read: by tl_go_object_key() of what stands for it
 * in the program. The oldest give way: a process that dies ends none.
 */
struct tl_go_exchange {
	struct tl_conn conn;
	struct tl_text text;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_go_exchange);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_go_exchanges SEC(".maps");

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

/* Of an object that is at least 16 bytes large. */
static __always_inline __u64 tl_go_object_key(__u64 address)
{
	return tl_process_key(address >> 4);
}

/*
 * The binary that the current thread executes, whose index is in the probe's cookie. NULL when it is in a
 * cgroup that is not traced (a probe fires in every process), and when the function is going to begin once
 * more: the probe is on the branch that looks whether the stack is large enough.
 */
static __always_inline const struct tl_go_binary *tl_go_enter(struct pt_regs *ctx, __u32 *index)
{
	__u64 cgroup_id = bpf_get_current_cgroup_id();
	__u8 *traced = bpf_map_lookup_elem(&tl_cgroups, &cgroup_id);
	__u32 *known, again;
	__u64 process;

	tl_own_stack(ctx);
	if (!traced || !*traced)
		return NULL;
	*index = bpf_get_attach_cookie(ctx);
	if (*index & TL_GO_RESTARTS && ctx->flags & (TL_FLAGS_CF | TL_FLAGS_ZF))
		return NULL;
	again = *index & TL_GO_AGAIN;
	*index &= TL_GO_BINARIES - 1;
	process = tl_process_key(0);
	known = bpf_map_lookup_elem(&tl_go_processes, &process);
	if (!known || (*known != *index && !again))
		bpf_map_update_elem(&tl_go_processes, &process, index, BPF_ANY);
	return tl_go_at(*index);
}

static __always_inline struct tl_go_exchange *tl_go_find(__u64 key)
{
	return bpf_map_lookup_elem(&tl_go_exchanges, &key);
}

/* The number of the exchange's span. */
static __always_inline __u64 tl_go_span(const struct tl_go_exchange *exchange)
{
	__u64 span;

	__builtin_memcpy(&span, exchange->conn.span_id, sizeof(span));
	return span;
}

/* Are two names of up to 16 bytes, filled up with zeros, the same? */
static __always_inline bool tl_go_is(const char *a, const char *b)
{
	return *(const __u64 *)a == *(const __u64 *)b &&
	       *(const __u64 *)(a + 8) == *(const __u64 *)(b + 8);
}

#endif
