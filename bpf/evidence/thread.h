/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * evidence/thread.h - which request a thread works for.
 *
 * A wrong parent is worse than none: every function here that finds a parent either has evidence,
 * or refuses and counts the reason.
 */
#ifndef THROUGHLINE_EVIDENCE_THREAD_H
#define THROUGHLINE_EVIDENCE_THREAD_H

#include "core/settings.h"
#include "evidence/unit.h"
#include "evidence/work.h"
#include "trace/flow.h"
#include "trace/request.h"

#define TL_DEFERRED_NS (60ULL * 1000 * 1000 * 1000)

/* The entry of the current thread, or NULL. */
static __always_inline struct tl_thread *tl_thread_now(void)
{
	struct task_struct *task = tl_current_task();
	struct tl_thread *thread;
	__u32 tid = TL_READ(task, pid);

	thread = bpf_map_lookup_elem(&tl_threads, &tid);
	if (!thread || tl_is_born(task, thread->born))
		return thread;
	/* the entry of a thread that has ended, which had the same id */
	bpf_map_delete_elem(&tl_threads, &tid);
	return NULL;
}

/* Makes an entry for the current thread, which has read a request. NULL: there is no memory. */
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

/*
 * Takes the request that `thread` works for. Returns the same as tl_take_parent(). A thread may
 * have read several requests (an event loop; a worker that puts one aside). Then the one that it
 * has read last is taken only if no other one is open, since an open request may make the call. A
 * thread that serves one request after the other never has two open.
 */
static __always_inline int tl_thread_parent(struct tl_thread *thread, struct tl_parent *parent)
{
	const struct tl_settings *settings = tl_settings_now();
	struct tl_open_key open = {};
	__s32 others;
	int refused;

	/*
	 * where ends of ticks are not seen, an event loop looks like a thread that serves one
	 * request
	 */
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
 * A call has no parent: what follows for the thread?
 *
 * Where several requests were open, the one that was read last most likely made the call, so it is
 * settled. Else each request that overlaps with it would be ambiguous in turn, without an end under
 * load. But a thread that makes calls from timers settles none: any request may have made the call.
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

/*
 * Is the current thread no evidence, since many tasks share it? Go keeps the current goroutine in a
 * register. The goroutine's object begins with the bounds of its stack, which are a power of two
 * apart and around the stack pointer: no other program has that there. (The address of the heap is
 * no sign: Go 1.26 randomises it.) Virtual threads of Java run on carriers that are named
 * ForkJoinPool-1-worker-N. `request` is the request that the thread has read: where the goroutine's
 * number is known, it works for that request from now on. Returns the reason for a refusal (enum
 * tl_counter), -1 when the goroutine works for the request, 0 when the thread is evidence. A global
 * function, to have a stack of its own.
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
			return request && tl_unit_reads(user.goroutine, request) ?
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
 * The thread goes on with something else. If it has read only a part of a message, the message's
 * request waits for the rest, which comes with another read: until then it makes no call, and is
 * not open.
 */
static __always_inline void tl_leave_partial(struct tl_thread *thread)
{
	if (!thread->partial)
		return;
	tl_settle(thread->partial, false);
	thread->partial = 0;
}

/* The thread goes on with something that belongs to no known request. */
static __always_inline void tl_leave(struct tl_thread *thread)
{
	thread->current = 0;
	thread->unknown = 1;
}

/*
 * The current thread has read bytes of `flow` that belong to the request `key`. `thread` is its
 * entry, or NULL. `whole`: the bytes were the end of a message.
 */
static __always_inline void tl_thread_reads(struct tl_flow *flow, struct tl_thread *thread,
					    __u64 key, __u8 evidence, bool whole)
{
	struct tl_request *request = NULL;
	int refused;

	if (key && flow->role == TL_ROLE_SERVER && tl_work_reads(key, flow->endpoints.socket)) {
		if (!flow->pid)
			flow->pid = bpf_get_current_pid_tgid() >> 32;
		return;
	}
	if (key)
		request = bpf_map_lookup_elem(&tl_requests, &key);
	if (!request) {
		if (thread && (thread->loop || flow->role == TL_ROLE_SERVER))
			tl_leave(thread);
		return;
	}
	if (evidence == TL_EVIDENCE_RESTORE && (!thread || request->reader != thread->id)) {
		/*
		 * The thread that reads the answer has not read the request (it is of the pool of a
		 * client library): this is no evidence for what it does next.
		 */
		if (thread)
			tl_leave(thread);
		return;
	}
	if (flow->role == TL_ROLE_SERVER && !flow->pid)
		flow->pid = bpf_get_current_pid_tgid() >> 32;
	if (!thread) {
		/* in Go, another goroutine reads the answers on a client connection */
		refused = tl_thread_refused(flow->role == TL_ROLE_SERVER ? key : 0);
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
	/* until it makes a call or answers, it may make the next call */
	if (flow->role == TL_ROLE_SERVER && flow->exchange.flags & TL_EXCHANGE_RESPONDING)
		return;
	if (!whole)
		thread->partial = key;
	/* the last bytes of an answer may be sent long after the thread has gone on */
	if (request->answering != key)
		tl_request_open(request, key, thread);
}

#endif
