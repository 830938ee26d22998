/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* evidence/find.h - for which request a call is made. */
#ifndef THROUGHLINE_EVIDENCE_FIND_H
#define THROUGHLINE_EVIDENCE_FIND_H

#include "evidence/thread.h"
#include "evidence/work.h"
#include "trace/claim.h"

/* Which counter counts a parent, by enum tl_evidence. A table: the verifier walks each branch. */
const __u32 tl_parent_counters[16] = {
	[TL_EVIDENCE_CONNECT] = TL_PARENT_CONNECT, [TL_EVIDENCE_RESTORE] = TL_PARENT_RESTORE,
	[TL_EVIDENCE_THREAD] = TL_PARENT_THREAD,   [TL_EVIDENCE_GOROUTINE] = TL_PARENT_GOROUTINE,
	[TL_EVIDENCE_CONTEXT] = TL_PARENT_CONTEXT, [TL_EVIDENCE_PYTHON] = TL_PARENT_PYTHON,
	[TL_EVIDENCE_JAVA] = TL_PARENT_JAVA,       [TL_EVIDENCE_UNIX] = TL_PARENT_UNIX,
	[TL_EVIDENCE_TICK] = TL_PARENT_TICK,       [TL_EVIDENCE_PROXY] = TL_PARENT_PROXY,
	[TL_EVIDENCE_RUBY] = TL_PARENT_RUBY,       [TL_EVIDENCE_NODE] = TL_PARENT_NODE,
	[TL_EVIDENCE_JOB] = TL_PARENT_JOB,
};

static __always_inline void tl_count_parent(__u8 evidence)
{
	tl_count(tl_parent_counters[evidence & 15]);
}

/*
 * For the first call on a connection: takes the request during which the connection was made.
 * Returns the same as tl_take_parent(). Another thread than the one that has connected is no proof.
 */
static __always_inline int tl_connect_parent(const struct tl_flow *flow, struct tl_trust *trust,
					     struct tl_parent *parent)
{
	__u32 tid = TL_READ(tl_current_task(), pid);
	int refused;

	if (!flow->connect)
		return TL_ROOT_NO_CONTEXT;
	refused = tl_take_parent(flow->connect, TL_EVIDENCE_CONNECT, parent);
	if (refused >= 0) {
		/* its client library has kept it for another request */
		if (tl_was_answered(flow->connect))
			tl_saw(trust, TL_SEEN_CONNECTION);
		return refused;
	}
	parent->likely = flow->likely || flow->tid != tid;
	return trust && tl_how_sure(trust, false) == TL_SURE_NOT ? TL_ROOT_CONTRADICTED : -1;
}

/*
 * Was this connection made by an event loop? An event loop writes the first request of a connection
 * some ticks after it has begun to connect. What its thread has read since is no evidence for that
 * request.
 */
static __always_inline bool tl_loop_has_gone_on(const struct tl_flow *flow,
						const struct tl_thread *thread)
{
	return thread && thread->loop && flow->flags & TL_FLOW_CONNECTED;
}

/*
 * Asks the connection and the thread. Returns the same as tl_take_parent(). A thread that serves one
 * request after the other is asked first: its connection may have been made for an earlier one.
 */
static __always_inline int tl_ask(struct tl_flow *flow, struct tl_thread *thread,
				  struct tl_trust *trust, bool first, struct tl_parent *parent)
{
	int refused;

	/* threads share their connections: the one that has connected was another request's */
	if (trust && trust->kind == TL_PROGRAM_WORKERS)
		first = false;
	if (first && !(thread && thread->current && trust && !tl_is_loop(trust))) {
		refused = tl_connect_parent(flow, trust, parent);
		if (refused < 0 || refused == TL_ROOT_CONTRADICTED)
			return refused;
		if (tl_loop_has_gone_on(flow, thread))
			return TL_ROOT_NO_CONTEXT;
	}
	return tl_thread_parent(thread, trust, flow->endpoints.socket, parent);
}

/*
 * The thread makes a call, and tl_ask() has answered `refused`. Returns that, or the reason why the
 * parent is not sure enough.
 */
static __always_inline int tl_thread_calls(struct tl_flow *flow, struct tl_thread *thread,
					   struct tl_trust *trust, bool first, int refused,
					   const struct tl_parent *parent)
{
	if (thread) {
		/* it means something only while the thread serves a request */
		thread->called = 1;
		thread->unsure = 1;
	}
	if (refused >= 0) {
		/* else that was judged when the connection was made */
		if (!first || !tl_loop_has_gone_on(flow, thread))
			tl_unattributed(thread, trust, refused);
	} else if (parent->likely && !tl_likely_is_enough(flow->cgroup_id)) {
		tl_settle(parent->key, false);
		refused = TL_ROOT_NOT_PROVEN;
	}
	tl_found(trust, refused, refused < 0 && parent->likely);
	return refused;
}

/*
 * Finds the request that a call is made for, where the runtime does not tell. Returns the same as
 * tl_take_parent().
 */
static __always_inline int tl_find_by_thread(struct tl_flow *flow, struct tl_trust *trust,
					     bool first, struct tl_parent *parent)
{
	struct tl_thread *thread = tl_thread_now();
	int refused = thread ? 0 : tl_claimed_parent(flow->endpoints.socket, parent, 0);

	if (refused) {
		tl_found(trust, refused, false);
	} else {
		refused = tl_ask(flow, thread, trust, first, parent);
		refused = tl_thread_calls(flow, thread, trust, first, refused, parent);
	}
	flow->tid = TL_READ(tl_current_task(), pid);
	return refused >= 0 ? tl_work_reason(refused) : refused;
}

/* Finds the request that a call is made for. False: there is no evidence. */
static __always_inline bool tl_find_parent(struct tl_flow *flow, struct tl_parent *parent)
{
	bool first = !(flow->flags & TL_FLOW_USED);
	struct tl_trust *trust = tl_trust_now();
	int refused = tl_work_parent(flow->endpoints.socket, parent);

	if (refused)
		tl_found(trust, refused, false);
	else
		refused = tl_find_by_thread(flow, trust, first, parent);
	if (refused >= 0) {
		tl_count(refused);
		return false;
	}
	tl_count_parent(parent->evidence);
	return true;
}

/*
 * The same for a call whose writer is not known, as it leaves in an interrupt: its connection may be
 * claimed.
 */
static __always_inline bool tl_find_claimed(const struct tl_flow *flow, struct tl_parent *parent)
{
	int refused = tl_claimed_parent(flow->endpoints.socket, parent, 0);

	if (refused > 0)
		tl_count(refused);
	if (refused >= 0)
		return false;
	tl_count_parent(parent->evidence);
	return true;
}

#endif
