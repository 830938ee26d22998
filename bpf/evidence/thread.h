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
#include "evidence/timers.h"
#include "evidence/trust.h"
#include "evidence/unit.h"
#include "evidence/work.h"
#include "trace/flow.h"
#include "trace/request.h"

#define TL_FIRST_TICK_NS (1000ULL * 1000 * 1000)
#define TL_DEFERRED_NS (60ULL * 1000 * 1000 * 1000)

/* The entry of the current thread, or NULL. */
static __always_inline struct tl_thread *tl_thread_now(void)
{
	struct task_struct *task = tl_current_task();
	struct tl_thread *thread;
	__u32 tid = TL_READ(task, pid);

	thread = bpf_map_lookup_elem(&tl_threads, &tid);
	if (!thread)
		return NULL;
	if (thread->began ? thread->began == TL_READ(task, start_boottime) :
			    tl_is_born(task, thread->born))
		return thread;
	/* the entry of a thread that has ended, which had the same id */
	bpf_map_delete_elem(&tl_threads, &tid);
	return NULL;
}

/* Makes an entry for the current thread, which has read a request. NULL: there is no memory. */
static __always_inline struct tl_thread *tl_thread_make(void)
{
	struct task_struct *task = tl_current_task();
	struct tl_thread *fresh;
	__u32 tid = TL_READ(task, pid);

	tl_insert_zeros(&tl_threads, &tid, BPF_ANY);
	fresh = bpf_map_lookup_elem(&tl_threads, &tid);
	if (!fresh)
		return NULL;
	fresh->id = (__u64)bpf_get_prandom_u32() << 32 | tid;
	fresh->began = TL_READ(task, start_boottime);
	fresh->born = tl_born(task);
	fresh->made_ns = bpf_ktime_get_ns();
	return fresh;
}

/*
 * The current thread accepts a connection. An event loop with timers is followed from then on, to
 * know of them before its first read.
 */
static __always_inline void tl_thread_accepts(void)
{
	struct tl_thread *thread = tl_thread_now();

	if (!thread && tl_traced(tl_cgroup_of(tl_current_task())) &&
	    tl_kind_of(tl_executable()) == TL_PROGRAM_TIMERS)
		thread = tl_thread_make();
	if (thread)
		tl_timers_wake(thread);
}

/*
 * Is any request of `thread` open, apart from `key`? Each of them may make the next call of an event
 * loop.
 */
static __always_inline bool tl_others_open(const struct tl_thread *thread, __u64 key)
{
	struct tl_open_key open = { key, thread->id };
	__s32 others = thread->open;

	if (others > 0 && key && bpf_map_lookup_elem(&tl_open, &open))
		others--;
	return others > 0;
}

/*
 * The event loop `thread` goes on with something else. Where it has read a request whole, and has
 * neither called nor answered, it delays requests: a limit of their rate, a name that is looked up,
 * a script that sleeps.
 */
static __always_inline void tl_thread_goes_on(struct tl_thread *thread)
{
	struct tl_open_key open = { thread->current, thread->id };

	if (thread->whole && !thread->delays && bpf_map_lookup_elem(&tl_open, &open))
		thread->delays = 1;
	thread->whole = 0;
}

/*
 * May the call be of another request than `key`, which was delayed? It is made by a timer, or for
 * an event that is not seen.
 */
static __always_inline bool tl_may_be_delayed(const struct tl_thread *thread, __u64 key)
{
	return thread->delays && (tl_others_open(thread, key) || tl_timers_may_call(thread));
}

/*
 * Does `thread` wait in between, so that what it has read last is what it works at? A thread that puts
 * requests aside for others never waits for several descriptors. An event loop does so soon after its
 * first read.
 */
static __always_inline bool tl_has_ticks(const struct tl_thread *thread)
{
	return thread->loop || bpf_ktime_get_ns() - thread->made_ns < TL_FIRST_TICK_NS;
}

/*
 * Takes the request that `thread` works for. Returns the same as tl_take_parent().
 *
 * A thread that serves one request after the other works for the one that it has read last. An
 * event loop has read several. Then the one that it has read last is taken only if no other one is
 * open, since an open request may make the call. But where the program is known by its name to call
 * only from the handler of what it has read last, others may be open: their bodies are on the way.
 * `socket`: where the call is written. An event loop that writes to the very connection whose answer
 * it has read may hand the connection to a request that has waited for it.
 */
static __always_inline int tl_thread_parent(struct tl_thread *thread, struct tl_trust *trust,
					    __u64 socket, struct tl_parent *parent)
{
	const struct tl_settings *settings = tl_settings_now();
	enum tl_sure sure;
	__u8 evidence;
	bool loop;
	int refused;

	if (!thread || !thread->current || !settings)
		return TL_ROOT_NO_CONTEXT;
	if (!trust) {
		tl_count(TL_FULL_TRUST);
		return TL_ROOT_NO_CONTEXT;
	}
	loop = tl_is_loop(trust);
	/*
	 * where ends of ticks are not seen, an event loop looks like a thread that serves one
	 * request
	 */
	if (!settings->ticks && !tl_is_serial(trust))
		return TL_ROOT_NO_CONTEXT;
	/*
	 * It has read its request before the program was known. Or it is an event loop that was not
	 * known: one of a library that replaces how threads wait.
	 */
	if (trust->kind == TL_PROGRAM_WORKERS && !thread->proves)
		return TL_ROOT_CONTRADICTED;
	evidence = loop && thread->evidence == TL_EVIDENCE_THREAD ? TL_EVIDENCE_TICK :
								    thread->evidence;
	refused = tl_take_parent(thread->current, evidence, parent);
	if (refused >= 0)
		return refused;
	/*
	 * An event loop calls for another request then. A server that writes header and body one after
	 * the other gives TCP a body that may not leave before the header has been acknowledged.
	 */
	if (parent->answer >= (loop ? TL_ANSWER_BEGUN : TL_ANSWER_WAITS))
		return TL_ROOT_PARENT_ENDED;
	if (trust->kind == TL_PROGRAM_UNKNOWN && tl_others_open(thread, parent->key))
		return TL_ROOT_AMBIGUOUS;
	if (loop && trust->kind == TL_PROGRAM_UNKNOWN &&
	    ((trust->seen[TL_SEEN_OVERLAP] && !tl_has_ticks(thread)) ||
	     (socket && thread->restored == socket)))
		return TL_ROOT_AMBIGUOUS;
	if (trust->kind == TL_PROGRAM_TIMERS && tl_may_be_delayed(thread, parent->key))
		return TL_ROOT_AMBIGUOUS;
	sure = tl_how_sure(trust, thread->unsure);
	parent->likely = sure != TL_SURE_PROVEN;
	return sure == TL_SURE_NOT ? TL_ROOT_CONTRADICTED : -1;
}

/*
 * The current thread has connected, or has sent something to where it has not read a request,
 * whatever that was. The handler that has read a request does so at once. What comes next may be a
 * timer's, also where no program could tell that this was a call.
 */
static __always_inline void tl_thread_acts(struct tl_thread *thread)
{
	if (thread)
		thread->unsure = 1;
}

/* The same. A global function, which verifiers walk once. */
__noinline int tl_acts_now(void)
{
	tl_thread_acts(tl_thread_now());
	return 0;
}

/*
 * A call has no parent: what follows for the thread, and for its program?
 *
 * Where several requests were open, the one that was read last most likely made the call, so it is
 * settled. Else each request that overlaps with it would be ambiguous in turn, without an end under
 * load. But a thread that makes calls from timers settles none: any request may have made the call.
 * A call that no request of the thread can have made is of something else: a timer, or another
 * thread's request. Its next call may be made while the thread has a request.
 */
static __always_inline void tl_unattributed(struct tl_thread *thread, struct tl_trust *trust,
					    int refused)
{
	const struct tl_settings *settings = tl_settings_now();
	__u64 now = bpf_ktime_get_ns();

	if (!thread)
		return;
	if (refused == TL_ROOT_AMBIGUOUS) {
		if ((trust && trust->kind == TL_PROGRAM_TIMERS) ||
		    (thread->deferred_ns && now - thread->deferred_ns < TL_DEFERRED_NS))
			return;
		tl_settle(thread->current, false);
		return;
	}
	if (refused == TL_ROOT_CONTRADICTED) {
		tl_settle(thread->current, false);
		return;
	}
	if (refused != TL_ROOT_NO_CONTEXT && refused != TL_ROOT_PARENT_ENDED)
		return;
	if (thread->loop && !thread->current && !thread->unknown)
		thread->deferred_ns = now;
	/* while the programs of an agent take over from another one's, a read may have been missed */
	if (!thread->unknown && !tl_others_open(thread, 0) && settings &&
	    now >= settings->complete_ns)
		tl_saw(trust, TL_SEEN_IDLE);
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
 * The thread goes on with something else. If it has read only a part of an answer, the request waits
 * for the rest, which comes with another read: until then it makes no call, and is not open.
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
	tl_thread_goes_on(thread);
	thread->current = 0;
	thread->unknown = 1;
}

/*
 * `thread` has read bytes of the request `key`: what does that tell of its program? No inline
 * function, to have a stack of its own.
 */
static __noinline void tl_judge_read(struct tl_thread *thread, struct tl_trust *trust,
				     const struct tl_request *request, __u64 key)
{
	__u64 reader = request->reader;

	/* what is left of a body after the answer may be thrown away by any thread */
	if (reader && (__u32)reader != (__u32)thread->id && request->answering != key)
		tl_saw(trust, TL_SEEN_READ);
	if (thread->serves == key)
		return;
	thread->serial = trust && tl_is_serial(trust);
	if (thread->serial)
		thread->loop = 0;
	/* an event loop that is known reads one request after the other, and calls for any of them later */
	if (thread->serves && trust && !tl_is_known_loop(trust) && !trust->seen[TL_SEEN_OVERLAP]) {
		if (tl_is_unanswered(thread->serves)) {
			thread->several = 1;
			tl_saw(trust, TL_SEEN_OVERLAP);
		} else if (!thread->loop) {
			/*
			 * Its answer may be written, and wait in the socket: see tl_responds(). What an
			 * event loop has written may be an interim answer.
			 */
			tl_settle(thread->serves, false);
		}
	}
	thread->serves = key;
	thread->called = 0;
}

/*
 * The current thread begins to answer on `flow`. Whether it is the thread that has read the request
 * tells what its program is.
 */
static __always_inline void tl_thread_answers(struct tl_flow *flow)
{
	__u64 key = flow->exchange.request;
	const struct tl_request *request;
	struct tl_thread *thread;
	struct tl_trust *trust;
	__u64 reader;
	__u32 tid = TL_READ(tl_current_task(), pid);

	if (flow->exchange.flags & TL_EXCHANGE_RESPONDING || !key)
		return;
	tl_work_answers(key, flow->endpoints.socket);
	request = bpf_map_lookup_elem(&tl_requests, &key);
	reader = request ? request->reader : 0;
	if (!reader || !tl_is_request(request, key))
		return;
	if ((__u32)reader != tid) {
		tl_saw(tl_trust_now(), TL_SEEN_ANSWER);
		return;
	}
	thread = bpf_map_lookup_elem(&tl_threads, &tid);
	if (!thread || thread->id != reader || thread->serves != key)
		return;
	thread->serves = 0;
	if (!thread->called)
		return;
	thread->called = 0;
	trust = tl_trust_now();
	if (trust && trust->earned < TL_EARNED)
		__sync_fetch_and_add(&trust->earned, 1);
}

/*
 * The current thread waits for several descriptors. An event loop does that while it serves a
 * request. A thread that does it in between serves one request after the other. Returns whether the
 * thread goes on with the request that it serves: a client library may wait for descriptors of its
 * own.
 */
static __always_inline bool tl_thread_waits(struct tl_thread *thread)
{
	struct tl_trust *trust;

	if (!thread->serves)
		return false;
	if (!tl_is_unanswered(thread->serves)) {
		thread->serves = 0;
		return false;
	}
	trust = tl_trust_now();
	if (!trust)
		return false;
	if (tl_is_serial(trust))
		return true;
	if (!trust->seen[TL_SEEN_WAITS])
		tl_saw(trust, TL_SEEN_WAITS);
	return false;
}

/*
 * The current thread has read an answer on `flow`, of a call for the request `key`, or 0. No inline
 * function, to have a stack of its own.
 */
static __noinline void tl_judge_response(const struct tl_flow *flow, struct tl_thread *thread,
					 __u64 key)
{
	__u32 tid = TL_READ(tl_current_task(), pid), writer = flow->tid;

	if (flow->flags & TL_FLOW_OPAQUE)
		return;
	if (writer && writer != tid && (thread || bpf_map_lookup_elem(&tl_threads, &writer)))
		tl_saw(tl_trust_now(), TL_SEEN_RESPONSE);
	if (thread && key && tl_was_answered(key))
		tl_saw(tl_trust_now(), TL_SEEN_LATE);
}

/*
 * The current thread has read bytes of `flow` that belong to the request `key`. `thread` is its
 * entry, or NULL. `whole`: the bytes were the end of a message. `sk`: the TCP socket that it has read;
 * NULL where each write of the application is seen, as in a TLS library.
 */
static __always_inline void tl_thread_reads(struct tl_flow *flow, struct tl_thread *thread,
					    __u64 key, __u8 evidence, bool whole,
					    const struct sock *sk)
{
	bool server = flow->role == TL_ROLE_SERVER;
	struct tl_request *request = NULL;
	struct tl_trust *trust;
	int refused;

	if (key)
		request = bpf_map_lookup_elem(&tl_requests, &key);
	if (server && sk && request && !request->sock && tl_is_request(request, key)) {
		request->socket = flow->endpoints.socket;
		request->sock = (__u64)sk;
	}
	if (key && server &&
	    tl_work_reads(key, flow->endpoints.socket, flow->endpoints.local_port)) {
		if (!flow->pid)
			flow->pid = bpf_get_current_pid_tgid() >> 32;
		return;
	}
	if (!server) {
		/* which request it works for is known: the answer may come by a shared connection */
		if (thread && thread->serial)
			return;
		tl_judge_response(flow, thread, key);
	}
	if (!request) {
		if (thread && (thread->loop || server))
			tl_leave(thread);
		return;
	}
	if (!server && (!thread || request->reader != thread->id)) {
		/*
		 * The thread that reads the answer has not read the request (it is of the pool of a
		 * client library): this is no evidence for what it does next.
		 */
		if (thread && thread->loop)
			tl_leave(thread);
		return;
	}
	if (server && !flow->pid)
		flow->pid = bpf_get_current_pid_tgid() >> 32;
	if (!thread) {
		/* in Go, another goroutine reads the answers on a client connection */
		refused = tl_thread_refused(server ? key : 0);
		if (refused) {
			if (refused > 0)
				tl_count(refused);
			return;
		}
		thread = tl_thread_make();
		if (!thread)
			return;
	}
	if (server) {
		trust = tl_trust_now();
		tl_judge_read(thread, trust, request, key);
	}
	tl_thread_goes_on(thread);
	thread->whole = whole && thread->loop;
	thread->restored = server ? 0 : flow->endpoints.socket;
	thread->current = key;
	thread->evidence = evidence;
	thread->proves = thread->serial & ~thread->several; /* without a branch, for verifiers */
	thread->unknown = 0;
	/*
	 * nginx calls when it has read a request whole, or else when it has read the begin: the rest
	 * of its body makes no call, but a timer may
	 */
	thread->unsure = !whole || (server && request->flags & TL_REQUEST_SETTLED);
	/* until it makes a call or answers, it may make the next call */
	if (server && flow->exchange.flags & TL_EXCHANGE_RESPONDING)
		return;
	/* the rest of an answer comes with another read; a request may make calls before it is whole */
	if (!whole && !server)
		thread->partial = key;
	/* the last bytes of an answer may be sent long after the thread has gone on */
	if (request->answering != key)
		tl_request_open(request, key, thread);
}

#endif
