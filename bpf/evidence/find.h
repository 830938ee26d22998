/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* evidence/find.h - for which request a call is made. */
#ifndef THROUGHLINE_EVIDENCE_FIND_H
#define THROUGHLINE_EVIDENCE_FIND_H

#include "evidence/claim.h"
#include "evidence/thread.h"
#include "evidence/work.h"

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
	case TL_EVIDENCE_PYTHON:
		tl_count(TL_PARENT_PYTHON);
		return;
	case TL_EVIDENCE_JAVA:
		tl_count(TL_PARENT_JAVA);
		return;
	}
	tl_count(TL_PARENT_THREAD);
}

/*
 * For the first call on a connection: takes the request during which the connection was made.
 * False: it is not known, or has ended.
 */
static __always_inline bool tl_connect_parent(const struct tl_flow *flow, struct tl_parent *parent)
{
	return flow->connect && tl_take_parent(flow->connect, TL_EVIDENCE_CONNECT, parent) < 0;
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

/* Finds the request that a call is made for. False: there is no evidence. */
static __always_inline bool tl_find_parent(struct tl_flow *flow, struct tl_parent *parent)
{
	bool first = !(flow->flags & TL_FLOW_USED);
	struct tl_thread *thread;
	int refused;

	refused = tl_work_parent(parent);
	if (refused < 0) {
		tl_count_parent(parent->evidence);
		return true;
	}
	if (refused) {
		tl_count(refused);
		return false;
	}
	if (first && tl_connect_parent(flow, parent)) {
		tl_count(TL_PARENT_CONNECT);
		return true;
	}
	thread = tl_thread_now();
	if (first && tl_loop_has_gone_on(flow, thread)) {
		tl_count(tl_work_reason(TL_ROOT_NO_CONTEXT));
		return false;
	}
	refused = tl_thread_parent(thread, parent);
	if (!thread)
		refused = tl_claimed_parent(flow->endpoints.socket, parent, refused);
	if (refused >= 0) {
		tl_unattributed(thread, refused);
		tl_count(tl_work_reason(refused));
		return false;
	}
	tl_count_parent(parent->evidence);
	return true;
}

#endif
