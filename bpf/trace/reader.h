/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * trace/reader.h - threads that read requests, and which of their requests may make a call next.
 */
#ifndef THROUGHLINE_TRACE_READER_H
#define THROUGHLINE_TRACE_READER_H

#include "core/process.h"

#define TL_ERRNO_EEXIST 17

/*
 * What a thread is doing. `open` counts the requests that it has read and that have neither made a
 * call nor begun to answer: in an event loop any of them may make the next call. They are in tl_open.
 */
struct tl_thread {
	__u64 id; /* of this entry: the number of the thread, and above it one of chance */
	__u64 current; /* key of tl_requests, or 0 */
	__u64 partial; /* the request of which a part was read last: see tl_leave_partial() */
	__u64 deferred_ns; /* when it last called in a tick that had read nothing: a timer did */
	__s32 open;
	__u32 born; /* when the thread began: see tl_born() */
	__u8 loop; /* it has waited for several descriptors at once */
	__u8 evidence; /* how `current` was found */
	__u8 unknown; /* no `current`, since it read something that belongs to nobody we know */
	__u8 _pad[5];
};

struct tl_open_key {
	__u64 request;
	__u64 thread; /* tl_thread.id */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, __u32);
	__type(value, struct tl_thread);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_threads SEC(".maps");

/*
 * The requests that tl_thread.open counts. Several processors may find at once that a request opens, or
 * settles; the one that makes its entry counts it, and so does the one that removes it. Never more
 * than there are requests: each is in it once.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, struct tl_open_key);
	__type(value, __u8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_open SEC(".maps");

#endif
