/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * evidence/thread.h - which request a thread works for.
 *
 * A wrong parent is worse than none: every function here that finds a parent either has evidence or
 * refuses and counts why (docs/propagation.md).
 */
#ifndef THROUGHLINE_EVIDENCE_THREAD_H
#define THROUGHLINE_EVIDENCE_THREAD_H

#include "core/settings.h"
#include "evidence/unit.h"
#include "trace/flow.h"
#include "trace/request.h"

#define TL_DEFERRED_NS (60ULL * 1000 * 1000 * 1000)

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
 * The current thread, `thread` if it is known already, has read bytes of `flow`, which belong to the
 * request `key`. `whole`: they were the end of a message.
 */
static __always_inline void tl_thread_reads(struct tl_flow *flow, struct tl_thread *thread,
					    __u64 key, __u8 evidence, bool whole)
{
	struct tl_request *request = NULL;
	int refused;

	if (key)
		request = bpf_map_lookup_elem(&tl_requests, &key);
	if (!request) {
		if (thread && (thread->loop || flow->role == TL_ROLE_SERVER))
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
	if (flow->role == TL_ROLE_SERVER && !flow->pid)
		flow->pid = bpf_get_current_pid_tgid() >> 32;
	if (!thread) {
		/* what a client connection brings is read by a goroutine of its own */
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
	/* until it calls on or answers, it may be the one that calls next */
	if (flow->role == TL_ROLE_SERVER && flow->exchange.flags & TL_EXCHANGE_RESPONDING)
		return;
	if (!whole)
		thread->partial = key;
	/* the last bytes of an answer leave long after the thread has gone on */
	if (request->answering != key)
		tl_request_open(request, key, thread);
}

#endif
