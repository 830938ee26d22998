/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * evidence/timers.h - may a timer make the next call of an event loop?
 *
 * nginx runs the timers that have ended after the handlers of what it was woken for. A request that
 * was delayed (limit_req) makes its call then, in the same turn in which another one was read.
 * How long nginx waits at most says when its next timer ends.
 */
#ifndef THROUGHLINE_EVIDENCE_TIMERS_H
#define THROUGHLINE_EVIDENCE_TIMERS_H

#include "trace/reader.h"

#define TL_MS (1000ULL * 1000)
/* nginx's clock is coarse: up to 10 ms, and timers are rounded */
#define TL_TIMERS_EARLY_NS (20 * TL_MS)
/*
 * The longest time between nginx's look at the clock, when it is woken, and the first thing that is
 * seen of it. A timer is wrongly ruled out only if it stands still for longer.
 */
#define TL_TIMERS_STILL_NS (250 * TL_MS)
#define TL_TIMERS_MUTEX_MS 500 /* accept_mutex_delay: nginx waits no longer without the mutex */

/* The thread has read or accepted something. */
static __always_inline void tl_timers_wake(struct tl_thread *thread)
{
	if (!thread->wakes_ns)
		thread->wakes_ns = bpf_ktime_get_ns();
}

/*
 * The thread waits for at most `timeout` ms; -1: for ever, which says nothing where nginx has a
 * timer_resolution, with which it always waits like that; 0: or an unknown time.
 */
static __always_inline void tl_timers_wait(struct tl_thread *thread, __s32 timeout)
{
	__u64 low = thread->waits_ns;

	/* the clock by which the timeout was computed was read after that, and before `wakes_ns` */
	if (thread->wakes_ns > low + TL_TIMERS_STILL_NS)
		low = thread->wakes_ns - TL_TIMERS_STILL_NS;
	if (timeout > 0 && timeout != TL_TIMERS_MUTEX_MS)
		thread->timed = 1;
	if (timeout > 0 && low)
		thread->quiet_ns = low + (__u32)timeout * TL_MS;
	else
		thread->quiet_ns = timeout < 0 && thread->timed ? ~0ULL : 0;
	thread->waits_ns = bpf_ktime_get_ns();
	thread->wakes_ns = 0;
}

/* May a timer have ended before the thread was woken? */
static __always_inline bool tl_timers_may_call(const struct tl_thread *thread)
{
	return !thread->wakes_ns || thread->wakes_ns + TL_TIMERS_EARLY_NS >= thread->quiet_ns;
}

#endif
