/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * evidence/context.h - W3C Trace Context, and which request a thread is working for.
 *
 * A wrong parent is worse than none: every function here that finds a parent either has evidence
 * or says no and counts why (docs/propagation.md).
 */
#ifndef THROUGHLINE_CONTEXT_H
#define THROUGHLINE_CONTEXT_H

#include "evidence/goroutine.h"
#include "proto/http1.h"

#define TL_ERRNO_EEXIST 17
#define TL_FLAG_SAMPLED 0x01
#define TL_FLAG_RANDOM 0x02

static __always_inline void tl_random_id(__u8 *id, __u32 words)
{
	__u32 *word = (__u32 *)id;
	__u32 any = 0;
	__u32 i;

	for (i = 0; i < words; i++) {
		word[i] = bpf_get_prandom_u32();
		any |= word[i];
	}
	if (!any)
		id[0] = 1;
}

/* The head sampling decision for a new trace: OpenTelemetry's TraceIdRatioBased. */
static __always_inline __u8 tl_sample_root(const __u8 *trace_id)
{
	const struct tl_settings *settings = tl_settings_now();
	__u64 low;

	if (!settings)
		return 0;
	switch (settings->sampler) {
	case TL_SAMPLER_ALWAYS_ON:
		return TL_FLAG_SAMPLED;
	case TL_SAMPLER_RATIO:
		low = bpf_be64_to_cpu(*(__u64 *)(trace_id + 8));
		return low < settings->ratio_bound || settings->ratio_bound == ~0ULL ?
			       TL_FLAG_SAMPLED :
			       0;
	}
	return 0;
}

/* -1: not a lower-case hexadecimal digit */
static __always_inline int tl_hex(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

/*
 * W3C Trace Context Level 2, section 3.2: writes trace_id and parent_span_id. Returns the flags that
 * are passed on, or -1 for a value that restarts the trace; the ids are undefined then.
 */
__noinline int tl_parse_traceparent(TL_EXCHANGE)
{
	TL_TAKE_EXCHANGE(conn, text);
	/* 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 */
	__u32 len, i, any = 0;
	int high, low, version;
	const char *value;

	if (!conn || !text)
		return -1;
	value = text->traceparent;
	len = text->traceparent_len;
	/* a later version may be longer than what is kept */
	if (len > sizeof(text->traceparent))
		len = sizeof(text->traceparent);
	if (len < 55)
		return -1;
	high = tl_hex(value[0]);
	low = tl_hex(value[1]);
	if (high < 0 || low < 0)
		return -1;
	version = high << 4 | low;
	if (version == 0xff || (version == 0 && len != 55))
		return -1;
	if (len > 55 && value[55] != '-')
		return -1;
	if (value[2] != '-' || value[35] != '-' || value[52] != '-')
		return -1;
	for (i = 0; i < 16; i++) {
		high = tl_hex(value[3 + 2 * i]);
		low = tl_hex(value[4 + 2 * i]);
		if (high < 0 || low < 0)
			return -1;
		conn->trace_id[i] = high << 4 | low;
		any |= high | low;
	}
	if (!any)
		return -1;
	any = 0;
	for (i = 0; i < 8; i++) {
		high = tl_hex(value[36 + 2 * i]);
		low = tl_hex(value[37 + 2 * i]);
		if (high < 0 || low < 0)
			return -1;
		conn->parent_span_id[i] = high << 4 | low;
		any |= high | low;
	}
	if (!any)
		return -1;
	high = tl_hex(value[53]);
	low = tl_hex(value[54]);
	if (high < 0 || low < 0)
		return -1;
	return (high << 4 | low) & (TL_FLAG_SAMPLED | TL_FLAG_RANDOM);
}

/*
 * Takes the context of a message that carries one, and returns its flags. -1: it carries none, or an
 * invalid one.
 */
static __always_inline int tl_take_header(struct tl_conn *conn, struct tl_http *http,
					  struct tl_text *text)
{
	int flags = -1;

	if (!(http->flags & TL_HTTP_HAS_TRACEPARENT))
		return -1;
	if (!(http->flags & TL_HTTP_BAD_TRACEPARENT))
		flags = tl_parse_traceparent(TL_GIVE_EXCHANGE(conn, text));
	if (flags < 0) {
		tl_count(TL_RESTARTED_TRACEPARENT);
		text->tracestate_len = 0;
	}
	return flags;
}

static __always_inline void tl_take_tracestate(struct tl_http *http, struct tl_text *text)
{
	if (http->flags & TL_HTTP_BAD_TRACESTATE) {
		tl_count(TL_DROPPED_TRACESTATE);
		text->tracestate_len = 0;
	}
}

static __always_inline __u64 tl_key(const __u8 *span_id)
{
	return *(const __u64 *)span_id;
}

static __always_inline __u32 tl_current_tid(void)
{
	return (__u32)bpf_get_current_pid_tgid();
}

/* What is known of the current thread, if anything. */
static __always_inline struct tl_thread *tl_thread_now(void)
{
	struct task_struct *task = tl_current_task();
	struct tl_thread *thread;
	__u32 tid = TL_READ(task, pid);

	thread = bpf_map_lookup_elem(&tl_threads, &tid);
	if (!thread || tl_is_born(task, thread->born))
		return thread;
	/* that of one that has ended, whose number it was */
	bpf_map_delete_elem(&tl_threads, &tid);
	return NULL;
}

/* The current thread, of which nothing is known, has read a request. NULL: there is no memory. */
static __always_inline struct tl_thread *tl_thread_make(void)
{
	struct task_struct *task = tl_current_task();
	struct tl_thread fresh = {};
	__u32 tid = TL_READ(task, pid);

	fresh.id = (__u64)bpf_get_prandom_u32() << 32 | tid;
	fresh.born = tl_born(task);
	bpf_map_update_elem(&tl_threads, &tid, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&tl_threads, &tid);
}

/* Does the element still hold the request `key`? To be asked after what was read of it. */
static __always_inline bool tl_is_request(const struct tl_request *request, __u64 key)
{
	asm volatile("" ::: "memory");
	return *(const volatile __u64 *)request->span_id == key;
}

/*
 * The request needs its reader's attention no more: it called on, or began to answer, or ended. Of a
 * request that has ended meanwhile there is nothing to settle, whatever its element holds now.
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

/* The request runs in the current thread again, and may call next. */
static __always_inline void tl_request_open(struct tl_request *request, __u64 key,
					    struct tl_thread *thread)
{
	struct tl_open_key open = { key, thread->id };
	__u8 one = 1;
	int error;

	if (!tl_is_request(request, key))
		return;
	if (request->reader != thread->id) {
		tl_request_settle(request, key);
		*(volatile __u64 *)&request->reader = thread->id;
	}
	error = bpf_map_update_elem(&tl_open, &open, &one, BPF_NOEXIST);
	if (error == -TL_ERRNO_EEXIST)
		return;
	/* without an entry it counts for ever: no parent is found by this thread rather than a wrong one */
	if (error)
		tl_count(TL_FULL_REQUESTS);
	__sync_fetch_and_add(&thread->open, 1);
	/* has it ended meanwhile? Then whoever ended it may have come too early to settle it */
	if (!tl_is_request(request, key) && !bpf_map_delete_elem(&tl_open, &open))
		__sync_fetch_and_add(&thread->open, -1);
}

static __always_inline void tl_request_end(__u64 key)
{
	struct tl_request *request = bpf_map_lookup_elem(&tl_requests, &key);
	struct tl_tracestate *state;

	if (!request || !tl_is_request(request, key))
		return;
	*(volatile __u64 *)request->span_id = 0;
	/* it is no parent any more; the addition orders what stands before and behind it */
	__sync_fetch_and_add(&request->fanout, TL_FANOUT_MAX);
	tl_request_settle(request, key);
	if (request->tracestate_len) {
		state = bpf_map_lookup_elem(&tl_tracestates, &key);
		if (state)
			*(volatile __u64 *)&state->request = 0;
		bpf_map_delete_elem(&tl_tracestates, &key);
	}
	bpf_map_delete_elem(&tl_requests, &key);
}

/* Settles a request of which only the key is known. `called`: it made a call. */
static __always_inline void tl_settle(__u64 key, bool called)
{
	struct tl_request *request = bpf_map_lookup_elem(&tl_requests, &key);

	if (!request)
		return;
	if (called)
		__sync_fetch_and_add(&request->fanout, 1);
	tl_request_settle(request, key);
}

/*
 * The parent of a call: what it inherits from its request. A copy: the element that a request is in may
 * be that of another one at any time, so that nothing may be taken from it without being asked.
 */
struct tl_parent {
	__u64 key; /* of tl_requests, which is the span's id */
	__u8 trace_id[16];
	__u8 parent_span_id[8]; /* the parent's own */
	__u16 tracestate_len;
	__u8 trace_flags;
	__u8 evidence; /* enum tl_evidence */
	__u8 _pad[4];
};

/*
 * Takes the request `key` for the parent of a call. Returns -1, or why it may not be one (any more):
 * enum tl_counter.
 */
static __always_inline int tl_take_parent(__u64 key, __u8 evidence, struct tl_parent *parent)
{
	const struct tl_request *request = bpf_map_lookup_elem(&tl_requests, &key);

	if (!request)
		return TL_ROOT_PARENT_ENDED;
	if (bpf_ktime_get_ns() - request->start_ns > TL_AGE_MAX_NS)
		return tl_is_request(request, key) ? TL_ROOT_TOO_OLD : TL_ROOT_PARENT_ENDED;
	if (request->fanout >= TL_FANOUT_MAX)
		return tl_is_request(request, key) ? TL_ROOT_FANOUT : TL_ROOT_PARENT_ENDED;
	parent->key = key;
	__builtin_memcpy(parent->trace_id, request->trace_id, 16);
	__builtin_memcpy(parent->parent_span_id, request->parent_span_id, 8);
	parent->tracestate_len = request->tracestate_len;
	parent->trace_flags = request->trace_flags;
	parent->evidence = evidence;
	return tl_is_request(request, key) ? -1 : TL_ROOT_PARENT_ENDED;
}

/*
 * Takes the request that `thread` works for. Returns as tl_take_parent(). A thread may have read
 * several requests (an event loop, a worker that puts one aside): the last one is it only as long as
 * no other could be the one that calls. A thread that serves one after the other never has two open.
 */
static __always_inline int tl_thread_parent(struct tl_thread *thread, struct tl_parent *parent)
{
	const struct tl_settings *settings = tl_settings_now();
	struct tl_open_key open = {};
	__s32 others;
	int refused;

	/* an event loop whose ticks are not seen to end looks like a thread that serves one request */
	if (!thread || !thread->current || !settings || !settings->ticks)
		return TL_ROOT_NO_CONTEXT;
	refused = tl_take_parent(thread->current, thread->evidence, parent);
	if (refused >= 0)
		return refused;
	others = thread->open;
	if (others <= 0)
		return -1;
	open.request = parent->key;
	open.thread = thread->id;
	if (bpf_map_lookup_elem(&tl_open, &open))
		others--;
	return others > 0 ? TL_ROOT_AMBIGUOUS : -1;
}

/*
 * A call could not be attributed; what does it say about the thread?
 *
 * Refused as ambiguous, the request that was read last most likely made it. Unless the thread is
 * known to call from timers it is not open any more: else it would make all that overlap with it
 * ambiguous in turn, for ever under load, long after what began it has ended.
 */
static __always_inline void tl_unattributed(struct tl_thread *thread, int refused)
{
	__u64 now = bpf_ktime_get_ns();

	if (!thread)
		return;
	if (refused == TL_ROOT_AMBIGUOUS) {
		if (thread->deferred_ns && now - thread->deferred_ns < TL_DEFERRED_NS)
			return;
		tl_settle(thread->current, false);
	} else if (thread->loop && !thread->current && !thread->unknown) {
		thread->deferred_ns = now;
	}
}

static __always_inline void tl_count_parent(__u8 evidence)
{
	switch (evidence) {
	case TL_EVIDENCE_CONTEXT:
		tl_count(TL_PARENT_CONTEXT);
		return;
	case TL_EVIDENCE_GOROUTINE:
		tl_count(TL_PARENT_GOROUTINE);
		return;
	case TL_EVIDENCE_CONNECT:
		tl_count(TL_PARENT_CONNECT);
		return;
	case TL_EVIDENCE_RESTORE:
		tl_count(TL_PARENT_RESTORE);
		return;
	}
	tl_count(TL_PARENT_THREAD);
}

/*
 * Takes the request for which a goroutine has taken the connection: another goroutine writes, on
 * whatever thread. Returns as tl_take_parent(), `unknown` where nothing is known.
 */
static __always_inline int tl_go_parent(struct tl_conn *conn, struct tl_parent *parent, int unknown)
{
	struct tl_go_call *call;
	__u64 socket = conn->socket, key;

	call = bpf_map_lookup_elem(&tl_go_calls, &socket);
	if (!call || !call->fresh)
		return unknown;
	call->fresh = 0;
	key = call->request;
	return key ? tl_take_parent(key, call->evidence, parent) : TL_ROOT_NO_CONTEXT;
}

/* Which request is this call made for? False: for none that we know. */
static __always_inline bool tl_find_parent(struct tl_conn *conn, struct tl_parent *parent)
{
	struct tl_thread *thread;
	int refused;

	if (conn->connect && !(conn->flags & TL_CONN_USED) &&
	    tl_take_parent(conn->connect, TL_EVIDENCE_CONNECT, parent) < 0) {
		tl_count(TL_PARENT_CONNECT);
		return true;
	}
	thread = tl_thread_now();
	if (thread && thread->loop && conn->flags & TL_CONN_CONNECTED &&
	    !(conn->flags & TL_CONN_USED)) {
		/* an event loop writes the first request ticks after it decided to make it */
		tl_count(TL_ROOT_NO_CONTEXT);
		return false;
	}
	refused = tl_thread_parent(thread, parent);
#ifndef TL_OF_TLS /* no Go program calls OpenSSL; and stacks are small */
	if (!thread)
		refused = tl_go_parent(conn, parent, refused);
#endif
	if (refused >= 0) {
		tl_unattributed(thread, refused);
		tl_count(refused);
		return false;
	}
	tl_count_parent(parent->evidence);
	return true;
}

/*
 * Thread evidence proves nothing where many tasks share a thread without the kernel seeing it.
 * Go keeps the current goroutine in a register, and the goroutine begins with the bounds of its
 * stack, a power of two apart: no other program has them around its stack pointer there. (The heap's
 * address says nothing: Go 1.26 randomises it.)
 * Java: virtual threads run on carriers named ForkJoinPool-1-worker-N.
 * `request` is what the thread has read: a goroutine that we can tell from others works for it.
 * Returns why, -1 when that is noted, or 0. A function of its own, for its stack.
 */
__noinline int tl_thread_refused(__u64 request)
{
	struct tl_user user = {};
	__u64 bounds[2] = {}, size;
	char comm[16];

	if (!tl_read_user(&user))
		return TL_ROOT_NO_CONTEXT;
	if (user.goroutine &&
	    !bpf_probe_read_user(bounds, sizeof(bounds), (void *)user.goroutine)) {
		size = bounds[1] - bounds[0];
		if (bounds[0] < user.sp && user.sp <= bounds[1] && size >= 2048 &&
		    !(size & (size - 1)))
			return request && tl_goroutine_reads(user.goroutine, request) ?
				       -1 :
				       TL_ROOT_GOROUTINE;
	}
	bpf_get_current_comm(comm, sizeof(comm));
	if (*(__u64 *)comm == 0x6e696f4a6b726f46ULL &&
	    *(__u64 *)(comm + 8) << 8 == 0x2d312d6c6f6f5000ULL)
		return TL_ROOT_VIRTUAL_THREAD;
	return 0;
}

/*
 * A request whose body, or the answer to whose call, was read in part had its chance to act on that
 * part. When its thread goes on with something else it waits for the rest, which will come with a
 * read: it is not open meanwhile.
 */
static __always_inline void tl_leave_partial(struct tl_thread *thread)
{
	if (!thread->partial)
		return;
	tl_settle(thread->partial, false);
	thread->partial = 0;
}

/* The thread goes on with something that belongs to nobody we know. */
static __always_inline void tl_leave(struct tl_thread *thread)
{
	thread->current = 0;
	thread->unknown = 1;
}

/*
 * The current thread, `thread` if it is known already, has read bytes of `conn`, which belong to the
 * request `key`. `whole`: they were the end of a message.
 */
static __always_inline void tl_thread_reads(struct tl_conn *conn, struct tl_thread *thread,
					    __u64 key, __u8 evidence, bool whole)
{
	struct tl_request *request = NULL;
	int refused;

	if (key)
		request = bpf_map_lookup_elem(&tl_requests, &key);
	if (!request) {
		if (thread && (thread->loop || conn->role == TL_ROLE_SERVER))
			tl_leave(thread);
		return;
	}
	if (evidence == TL_EVIDENCE_RESTORE && (!thread || request->reader != thread->id)) {
		/*
		 * The answer was read by a thread that did not read the request (the pool of a client
		 * library): it says nothing about what that thread does next.
		 */
		if (thread)
			tl_leave(thread);
		return;
	}
	if (conn->role == TL_ROLE_SERVER && !conn->pid)
		conn->pid = bpf_get_current_pid_tgid() >> 32;
	if (!thread) {
		/* what a client connection brings is read by a goroutine of its own */
		refused = tl_thread_refused(conn->role == TL_ROLE_SERVER ? key : 0);
		if (refused) {
			if (refused > 0)
				tl_count(refused);
			return;
		}
		thread = tl_thread_make();
		if (!thread)
			return;
	}
	thread->current = key;
	thread->evidence = evidence;
	thread->unknown = 0;
	/* until it calls on or answers, it may be the one that calls next */
	if (conn->role == TL_ROLE_SERVER && conn->flags & TL_CONN_RESPONDING)
		return;
	if (!whole)
		thread->partial = key;
	/* the last bytes of an answer leave long after the thread has gone on */
	if (request->answering != key)
		tl_request_open(request, key, thread);
}

#endif
