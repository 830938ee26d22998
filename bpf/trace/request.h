/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* trace/request.h - requests that are being served: what their calls inherit. */
#ifndef THROUGHLINE_TRACE_REQUEST_H
#define THROUGHLINE_TRACE_REQUEST_H

#include "core/counters.h"
#include "core/maps.h"
#include "core/settings.h"
#include "proto/text.h"
#include "trace/reader.h"

#define TL_FANOUT_MAX 1024 /* calls of a request that get it as their parent */
#define TL_AGE_MAX_NS (300ULL * 1000 * 1000 * 1000)
/* In `start_ns`: the request was read before it was parsed, so what calls inherit is not known yet. */
#define TL_UNPARSED (1ULL << 63)

struct tl_tracestate {
	__u64 request; /* the key of the request: as in tl_request, the element may hold another one later */
	char text[TL_TRACESTATE_MAX];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, __u64);
	__type(value, struct tl_request);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_requests SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_tracestate);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_tracestates SEC(".maps");

/* Requests that have ended without a whole answer. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_aborted SEC(".maps");

/* Was the request `key` answered whole? */
static __always_inline bool tl_was_answered(__u64 key)
{
	return !bpf_map_lookup_elem(&tl_requests, &key) && !bpf_map_lookup_elem(&tl_aborted, &key);
}

/* Does the element still hold the request `key`? To be checked after reading from it. */
static __always_inline bool tl_is_request(const struct tl_request *request, __u64 key)
{
	tl_order();
	return *(const volatile __u64 *)request->span_id == key;
}

enum tl_answer {
	TL_ANSWER_NONE, /* the request is being served, and the service has written nothing */
	TL_ANSWER_BEGUN, /* it has written a part of its answer */
	TL_ANSWER_WAITS, /* what it has written waits in the socket: the end of the answer, perhaps */
	TL_ANSWER_OVER, /* it has written the whole answer, perhaps all of it still waits */
};

/*
 * What does the socket say of the answer to the request? A send returns when the bytes are in the
 * socket. Where TCP cannot send them at that moment, as when the peer takes no more, they leave later,
 * in an interrupt: they are written long before the programs see them. Once the header of the answer
 * has left, it is known where the answer ends (tl_answer_ends_at()).
 */
static __always_inline int tl_written(const struct tl_request *request)
{
	const struct tcp_sock *tcp = (const struct tcp_sock *)request->sock;
	const struct sock *sk = (const struct sock *)tcp;
	__u32 end = request->answer_end;
	__u32 left, written;
	__u8 state;

	if (!tcp)
		return TL_ANSWER_NONE;
	/* the socket has gone, unseen */
	if ((__u64)BPF_CORE_READ(sk, __sk_common.skc_cookie.counter) != request->socket)
		return TL_ANSWER_OVER;
	/* the service has closed its side */
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state != BPF_TCP_ESTABLISHED && state != BPF_TCP_CLOSE_WAIT)
		return TL_ANSWER_OVER;
	left = BPF_CORE_READ(tcp, snd_nxt);
	written = BPF_CORE_READ(tcp, write_seq);
	if (end && (__s32)(written - end) >= 0)
		return TL_ANSWER_OVER;
	/* more was written than the socket takes: the program keeps the rest, perhaps all of it */
	if (request->keeps || BPF_CORE_READ(sk, sk_socket, flags) & 1UL << SOCK_NOSPACE)
		return TL_ANSWER_OVER;
	if (end)
		return TL_ANSWER_BEGUN;
	return written == left ? TL_ANSWER_NONE : TL_ANSWER_WAITS;
}

/*
 * How far has the service come with the answer to the request `key`? A global function, to have a
 * stack of its own.
 */
__noinline int tl_answer_of(__u64 key)
{
	const struct tl_request *request = bpf_map_lookup_elem(&tl_requests, &key);
	int answer;

	if (!request)
		return TL_ANSWER_OVER;
	answer = tl_written(request);
	if (answer == TL_ANSWER_NONE) {
		/* read last: the socket says that bytes have left after the program has seen them */
		tl_order();
		if (*(const volatile __u64 *)&request->answering != key &&
		    tl_is_request(request, key))
			return TL_ANSWER_NONE;
		answer = TL_ANSWER_BEGUN;
	}
	/* the service may keep the rest of the answer, or have written its last chunk */
	return tl_sends_are_seen() ? answer : TL_ANSWER_OVER;
}

/*
 * The header of the answer to the request `key` has left. The answer ends at the sequence number `end`.
 */
static __always_inline void tl_answer_ends_at(__u64 key, __u32 end)
{
	struct tl_request *request = bpf_map_lookup_elem(&tl_requests, &key);

	if (request && tl_is_request(request, key))
		request->answer_end = end;
}

/*
 * The service has written to the socket of the request `key`. `keeps`: the socket did not take all of
 * it.
 */
static __always_inline void tl_answer_keeps(__u64 key, bool keeps)
{
	struct tl_request *request = bpf_map_lookup_elem(&tl_requests, &key);

	if (request && request->keeps != keeps && tl_is_request(request, key))
		request->keeps = keeps;
}

/* Is the request `key` being served, and the service has not begun to answer? */
static __always_inline bool tl_is_unanswered(__u64 key)
{
	return tl_answer_of(key) == TL_ANSWER_NONE;
}

/*
 * The request is not open any more: it has made a call, or begun to answer, or ended. For a request
 * that has ended meanwhile there is no entry in tl_open, whatever the element holds now.
 */
static __always_inline void tl_request_settle(const struct tl_request *request, __u64 key)
{
	struct tl_open_key open = { key, *(const volatile __u64 *)&request->reader };
	struct tl_thread *thread;
	__u32 tid = open.thread;

	if (!open.thread || bpf_map_delete_elem(&tl_open, &open))
		return;
	thread = bpf_map_lookup_elem(&tl_threads, &tid);
	if (thread && thread->id == open.thread)
		__sync_fetch_and_add(&thread->open, -1);
}

/* `thread`, which has read the request, may make its next call. */
static __always_inline void tl_request_opens(const struct tl_request *request, __u64 key,
					     struct tl_thread *thread)
{
	struct tl_open_key open = { key, thread->id };
	__u8 one = 1;
	int error;

	error = bpf_map_update_elem(&tl_open, &open, &one, BPF_NOEXIST);
	if (error == -TL_ERRNO_EEXIST)
		return;
	/*
	 * without an entry the count never goes down: the thread finds no parent rather than a
	 * wrong one
	 */
	if (error)
		tl_count(TL_FULL_REQUESTS);
	__sync_fetch_and_add(&thread->open, 1);
	/* if it has ended meanwhile, tl_request_end() may have come before the entry was made */
	if (!tl_is_request(request, key) && !bpf_map_delete_elem(&tl_open, &open))
		__sync_fetch_and_add(&thread->open, -1);
}

/* The current thread works for the request again: it may make the next call. */
static __always_inline void tl_request_open(struct tl_request *request, __u64 key,
					    struct tl_thread *thread)
{
	if (!tl_is_request(request, key))
		return;
	if (request->reader != thread->id) {
		tl_request_settle(request, key);
		*(volatile __u64 *)&request->reader = thread->id;
	}
	tl_request_opens(request, key, thread);
}

/*
 * What has begun to answer the request was an interim answer. The thread that has read it serves it
 * as before, and may make the next call, unless it has made one. A global function, which verifiers
 * walk once.
 */
__noinline int tl_request_goes_on(__u64 key)
{
	struct tl_request *request = bpf_map_lookup_elem(&tl_requests, &key);
	struct tl_thread *thread;
	__u32 tid;

	if (!request)
		return 0;
	request->answering = 0;
	tid = request->reader;
	thread = bpf_map_lookup_elem(&tl_threads, &tid);
	if (!thread || thread->id != request->reader || request->flags & TL_REQUEST_SETTLED)
		return 0;
	tl_request_opens(request, key, thread);
	/* tl_thread_answers() */
	if (!thread->serves)
		thread->serves = key;
	return 0;
}

static __always_inline void tl_request_end(__u64 key)
{
	struct tl_request *request = bpf_map_lookup_elem(&tl_requests, &key);
	struct tl_tracestate *state;

	if (!request || !tl_is_request(request, key))
		return;
	*(volatile __u64 *)request->span_id = 0;
	/* from here on it is no parent; on x86 the atomic addition also orders the accesses around it */
	__sync_fetch_and_add(&request->fanout, TL_FANOUT_MAX);
	tl_order_weak();
	tl_request_settle(request, key);
	if (request->tracestate_len) {
		state = bpf_map_lookup_elem(&tl_tracestates, &key);
		if (state)
			*(volatile __u64 *)&state->request = 0;
		bpf_map_delete_elem(&tl_tracestates, &key);
	}
	bpf_map_delete_elem(&tl_requests, &key);
}

/* The same. A global function, which verifiers walk once for each program. */
__noinline int tl_end_request(__u64 key)
{
	asm volatile("" ::"r"(key));
	tl_request_end(key);
	return 0;
}

/* Settles the request with this key. `called`: it made a call. */
static __always_inline void tl_settle(__u64 key, bool called)
{
	struct tl_request *request = bpf_map_lookup_elem(&tl_requests, &key);

	if (!request)
		return;
	/* what is not known when this is compiled is added without a branch */
	if (!__builtin_constant_p(called) || called)
		__sync_fetch_and_add(&request->fanout, called);
	request->flags |= TL_REQUEST_SETTLED;
	tl_request_settle(request, key);
}

/*
 * The parent of a call: what the call inherits from its request. It is a copy, since the element of
 * a request may hold another request at any time: everything that is read from it has to be checked
 * with tl_is_request().
 */
struct tl_parent {
	__u64 key; /* of tl_requests, which is the span's id */
	__u8 trace_id[16];
	__u8 parent_span_id[8]; /* the parent's own */
	__u16 tracestate_len;
	__u8 trace_flags;
	__u8 evidence; /* enum tl_evidence */
	__u8 answer; /* enum tl_answer, but not TL_ANSWER_OVER */
	__u8 likely; /* the evidence is no proof */
	__u8 _pad[2];
};

/*
 * Takes the request `key` as the parent of a call. Returns -1, or the reason why it cannot be a
 * parent (any more): enum tl_counter.
 */
static __always_inline int tl_take_parent(__u64 key, __u8 evidence, struct tl_parent *parent)
{
	const struct tl_request *request = bpf_map_lookup_elem(&tl_requests, &key);
	int answer = tl_answer_of(key);
	__u64 start;

	if (!request || answer >= TL_ANSWER_OVER)
		return TL_ROOT_PARENT_ENDED;
	start = *(const volatile __u64 *)&request->start_ns;
	tl_order_weak();
	if (start & TL_UNPARSED)
		return tl_is_request(request, key) ? TL_ROOT_NOT_PARSED : TL_ROOT_PARENT_ENDED;
	/* a job starts in the future */
	if ((__s64)(bpf_ktime_get_ns() - start) > (__s64)TL_AGE_MAX_NS)
		return tl_is_request(request, key) ? TL_ROOT_TOO_OLD : TL_ROOT_PARENT_ENDED;
	if (request->fanout >= TL_FANOUT_MAX)
		return tl_is_request(request, key) ? TL_ROOT_FANOUT : TL_ROOT_PARENT_ENDED;
	parent->key = key;
	__builtin_memcpy(parent->trace_id, request->trace_id, 16);
	__builtin_memcpy(parent->parent_span_id, request->parent_span_id, 8);
	parent->tracestate_len = request->tracestate_len;
	parent->trace_flags = request->trace_flags;
	/* all bits are TL_EVIDENCE_JOB; without a branch, each of which verifiers walk on */
	parent->evidence = evidence |
			   (request->flags & TL_REQUEST_JOB) / TL_REQUEST_JOB * TL_EVIDENCE_JOB;
	parent->answer = answer;
	parent->likely = 0;
	return tl_is_request(request, key) ? -1 : TL_ROOT_PARENT_ENDED;
}

/* Keeps the tracestate for calls of the request: `text` may soon hold the next request's. */
static __always_inline void tl_keep_tracestate(struct tl_text *text, struct tl_request *request,
					       __u64 key)
{
	struct tl_tracestate *state;

	tl_insert_zeros(&tl_tracestates, &key, BPF_ANY);
	state = bpf_map_lookup_elem(&tl_tracestates, &key);
	if (!state) {
		tl_count(TL_FULL_TRACESTATES);
		return;
	}
	__builtin_memcpy(state->text, text->tracestate, TL_TRACESTATE_MAX);
	tl_order();
	state->request = key;
	request->tracestate_len = text->tracestate_len;
}

/* Takes over the parent's tracestate: it travels with the trace. */
static __always_inline void tl_inherit_tracestate(struct tl_text *text,
						  const struct tl_parent *parent)
{
	struct tl_tracestate *state;
	__u64 key;

	text->tracestate_len = 0;
	if (!parent || !parent->tracestate_len)
		return;
	key = parent->key;
	state = bpf_map_lookup_elem(&tl_tracestates, &key);
	if (!state)
		return;
	__builtin_memcpy(text->tracestate, state->text, TL_TRACESTATE_MAX);
	tl_order();
	/* the element may hold another request's by now */
	if (*(volatile __u64 *)&state->request == key)
		text->tracestate_len = parent->tracestate_len;
}

#endif
