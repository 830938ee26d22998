/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * runtimes/python_kept.h - what uvloop before 0.23 keeps of a task's write: it sends for all tasks at
 * the end of the loop's turn, in the context of none. The task's request is claimed for the
 * connection (trace/claim.h) when it writes: tl_py_queued().
 */
#ifndef THROUGHLINE_RUNTIMES_PYTHON_KEPT_H
#define THROUGHLINE_RUNTIMES_PYTHON_KEPT_H

#include "runtimes/python.h"
#include "trace/claim.h"

/*
 * May uvloop still keep what was written in this turn? It sends when it has waited next: what was
 * written before that, and right after.
 */
static __always_inline bool tl_py_may_wait(const struct tl_py_thread *thread, __u32 turn)
{
	return thread->turn - turn <= 1;
}

/* Is the claim of `socket` for what uvloop sends now? A global function, to have a stack of its own. */
__noinline int tl_py_is_kept(__u64 socket)
{
#ifndef TL_LEGACY
	const struct tl_py_thread *thread = tl_py_thread_now(false);
	const struct tl_claim *claim = bpf_map_lookup_elem(&tl_claims, &socket);

	return thread && claim && tl_py_may_wait(thread, claim->turn);
#else
	asm volatile("" ::"r"(socket));
	return 0;
#endif
}

#endif
