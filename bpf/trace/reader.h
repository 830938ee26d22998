/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* trace/reader.h - threads that read requests, and which of their requests may make a call next. */
#ifndef THROUGHLINE_TRACE_READER_H
#define THROUGHLINE_TRACE_READER_H

#include "core/process.h"

#define TL_ERRNO_EEXIST 17

/*
 * What a thread is doing. `open` counts the requests that it has read and that have neither made a
 * call nor begun to answer: in an event loop any of them may make the next call. They are in
 * tl_open.
 */
struct tl_thread {
	__u64 id; /* of this entry: the thread's id, and a random number in the upper half */
	__u64 current; /* key of tl_requests, or 0 */
	__u64 partial; /* the request of which a part was read last: see tl_leave_partial() */
	__u64 deferred_ns; /* when it last made a call in a tick without a read: a timer made it */
	__u64 began; /* when the thread began: task->start_boottime, or 0 */
	__u64 serves; /* the request that it read last, until it answers it */
	__u64 made_ns; /* when this entry was made */
	__u64 restored; /* the socket whose answer made `current` its request */
	__s32 open;
	__u32 born; /* the same: see tl_born() */
	__u8 loop; /* it has waited for several descriptors at once: an event loop */
	__u8 evidence; /* how `current` was found */
	__u8 unknown; /* no `current`: it has read something that belongs to no known request */
	__u8 unsure; /* `current` was read in part, or has made a call: see tl_how_sure() */
	__u8 called; /* it has made a call while it serves `serves` */
	__u8 serial; /* its program is known to serve one request after the other on a thread */
	__u8 several; /* and yet it has read a request while its last one was unanswered */
	__u8 timed; /* it has waited for a time that depends on its timers */
	__u8 whole; /* `current` was read whole, and is followed to see whether it is delayed */
	__u8 delays; /* it has gone on while such a request had neither made a call nor an answer */
	__u8 proves; /* `serial`, and not `several` */
	__u8 _pad[5];
	__u64 waits_ns; /* when it began to wait last; see evidence/timers.h */
	__u64 wakes_ns; /* when it first did something since, or 0 */
	__u64 quiet_ns; /* until then none of its timers ends */
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
 * The requests that tl_thread.open counts. Several processors may open or settle a request at the
 * same time: the one that makes the entry adds to the count, and the one that removes it subtracts.
 * Each request is in it once, so there are never more entries than requests.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, struct tl_open_key);
	__type(value, __u8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_open SEC(".maps");

#endif
