/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * runtimes/python.h - the unit of work of Python: the current context (contextvars).
 *
 * asyncio, uvloop, anyio, asgiref and others run each task, and each callback, in a context that is
 * a copy of the one in which it was made. So contexts form a tree, which the probes on copies keep
 * (python.bpf.c). A context in which a request is read belongs to the connection of that request;
 * so do the contexts that it was copied from, up to the one that accepts connections. A context
 * that is copied for a request is bound to that request.
 *
 * gevent runs greenlets, and each in a context that is nobody's copy. There a greenlet belongs to
 * the connection that it reads.
 */
#ifndef THROUGHLINE_RUNTIMES_PYTHON_H
#define THROUGHLINE_RUNTIMES_PYTHON_H

#include "core/counters.h"
#include "runtimes/descriptor.h"
#include "runtimes/python_acceptor.h"
#include "runtimes/python_thread.h"
#include "trace/request.h"

#define TL_PY_DEPTH 8 /* ancestors that are looked at */
#define TL_PY_LEARNT 3 /* copies right after a read, which make a context a protocol's */
#define TL_PY_FRAMES 512 /* bytes of stack between uvloop's copy and listen() */

enum tl_py_flags {
	TL_PY_SHARED = 1 << 0, /* several connections were read in it or below: it owns none */
	TL_PY_ACCEPTS = 1 << 1, /* it accepts connections, or its descendants do: the same */
	TL_PY_OTHERWISE = 1 << 2, /* it was copied at another time than right after a read */
	TL_PY_LISTENS = 1 << 3, /* it was made to listen: see tl_python_listens() */
};

/* A context that was copied or that others were copied from, or a greenlet. */
struct tl_py_node {
	__u64 parent; /* the node that it is a copy of, or 0 */
	__u64 owner; /* the server connection (cookie) that is read in it or below it, or 0 */
	__u64 request; /* that it was copied for: see tl_py_request_of() */
	/* As struct tl_served has it of the owner, whose entry goes with a request on a Unix socket. */
	__u64 last;
	__u64 before;
	__u64 after; /* the request of its owner after whose answer it was copied last, or 0 */
	__u32 binary; /* index of the file whose probes have seen it begin */
	__u8 flags; /* enum tl_py_flags */
	__u8 learnt; /* copies right after a read */
	__u8 most; /* copies that are taken for a connection that begins, and 1; 0: none has begun */
	__u8 _pad;
};

/* What a thread has done last. */
struct tl_py_thread {
	__u64 socket; /* the server connection that it has read, until it does something else */
	__u64 request; /* what it has read there */
	__u64 context; /* address of the context in which it has read, or 0 */
	__u64 inner; /* address of a context that was entered and copied since */
	__u64 greenlet; /* address of the greenlet that it runs, or 0 */
	__u64 own; /* address of the context that it has entered for itself, or 0: see tl_py_is_own() */
	__u64 meets; /* the connection that uvloop tells a protocol of, or 0 */
	__u64 meets_in; /* number of the context in which it does */
	__u64 copied; /* number of the context that an extension has copied last, or 0 */
	__u64 answers; /* the request whose answer uvloop keeps, in this turn: */
	__u32 answers_in;
	__u32 turn; /* counts its waits for several descriptors */
	__u32 stack; /* lower half of its stack pointer then */
	__u32 born; /* see tl_born() */
	__u8 waits; /* it has waited for several descriptors */
	__u8 enters; /* it has copied a context while it ran another one than its own */
	__u8 accepts; /* it has accepted a connection since it has waited last */
	__u8 listens; /* it has listened: once, or 2 for more often */
	__u8 copies; /* of `meets_in`, since it has met, and 1 */
	__u8 _pad[3];
};

/* Which node is at the address of a context or greenlet: by tl_process_key(address >> 4). */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_py_contexts SEC(".maps");

/* By a number that is never used again, since CPython uses addresses again at once. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, __u64);
	__type(value, struct tl_py_node);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_py_nodes SEC(".maps");

/* By thread id. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct tl_py_thread);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_py_threads SEC(".maps");

/* The process id of the agent whose probes are attached; 0: there are none. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_py_agent SEC(".maps");

/* Where the current thread is: which context or greenlet it runs, and which node that is. */
struct tl_py_place {
	__u64 context; /* its address, or 0: the thread has none yet */
	__u64 node; /* number of its node, or of the one that it was entered from; 0: not known */
	bool entered; /* something runs in it: it is not the thread's own */
	bool greenlet; /* the thread runs greenlets */
};

static __always_inline struct tl_py_node *tl_py_node(__u64 number)
{
	return number ? bpf_map_lookup_elem(&tl_py_nodes, &number) : NULL;
}

/* The number of the node at an address, or 0. */
static __always_inline __u64 tl_py_number(__u64 address)
{
	__u64 key = tl_process_key(address >> 4), *number;

	number = address ? bpf_map_lookup_elem(&tl_py_contexts, &key) : NULL;
	return number ? *number : 0;
}

/* The node of this number, while the probes that have seen it are attached. */
static __always_inline struct tl_py_node *tl_py_live_node(__u64 number)
{
	struct tl_py_node *node = tl_py_node(number);

	return node && tl_py_binary(node->binary) ? node : NULL;
}

/* False: it is not known, since there are no probes. */
static __always_inline bool tl_py_is_probed(void)
{
	__u32 zero = 0, *agent = bpf_map_lookup_elem(&tl_py_agent, &zero);

	return agent && *agent;
}

static __always_inline struct tl_py_thread *tl_py_thread_now(bool create)
{
	struct task_struct *task = tl_current_task();
	struct tl_py_thread fresh = {}, *thread;
	__u32 tid = TL_READ(task, pid);

	thread = bpf_map_lookup_elem(&tl_py_threads, &tid);
	if (thread && tl_is_born(task, thread->born))
		return thread;
	if (!create)
		return NULL;
	fresh.born = tl_born(task);
	bpf_map_update_elem(&tl_py_threads, &tid, &fresh, BPF_ANY);
	return bpf_map_lookup_elem(&tl_py_threads, &tid);
}

/* Finds what the current thread runs, in the context at this address. */
static __always_inline void tl_py_find_place(__u64 context, const struct tl_py_thread *thread,
					     struct tl_py_place *place)
{
	__u32 entered = 0;

	place->context = context;
	place->node = tl_py_number(context);
	place->greenlet = thread && thread->greenlet;
	if (context)
		bpf_probe_read_user(&entered, sizeof(entered),
				    (void *)(context + TL_PY_ENTERED_AT));
	place->entered = entered != 0;
	if (place->node)
		return;
	/*
	 * A context of unknown origin, entered from a known one: Context().run(…) in a task. What
	 * runs in it is called from there.
	 */
	if (place->entered)
		place->node = tl_py_number(tl_user_word(context + TL_PY_PREVIOUS_AT));
	if (!place->node && place->greenlet)
		place->node = tl_py_number(thread->greenlet);
}

/*
 * Is this context, which is entered, the current thread's own? Since Python 3.14 a thread enters an
 * empty one where there was none. A global function, to have a stack of its own.
 */
__noinline int tl_py_is_own(__u64 context, __u32 index)
{
	const struct tl_python_binary *binary = tl_py_binary(index);

	asm volatile("" ::"r"(context));
	return binary && binary->thread_contexts && !tl_user_word(context + TL_PY_PREVIOUS_AT);
}

/*
 * The key of the request that a node belongs to; TL_ROOT_PARENT_ENDED where it has ended, 0 where there
 * is none. `calls`: what runs in it makes a call. TL_ROOT_AMBIGUOUS: it has gone on with something
 * after the last answer, and may still be at that; the next request was read meanwhile. TL_PY_DEPTH
 * bounds the way up.
 */
static __always_inline __u64 tl_py_request_of(__u64 number, bool calls)
{
	const struct tl_py_node *node;
	const struct tl_served *served;
	__u64 owner, after = 0;
	int i;

	for (i = 0; i < TL_PY_DEPTH; i++) {
		node = tl_py_node(number);
		if (!node)
			return 0;
		if (node->request)
			return node->request;
		if (calls && !i)
			after = node->after;
		owner = node->owner;
		if (owner && !(node->flags & (TL_PY_SHARED | TL_PY_ACCEPTS))) {
			if (after && after == node->before)
				return TL_ROOT_AMBIGUOUS;
			served = bpf_map_lookup_elem(&tl_serving, &owner);
			if (!served)
				return TL_ROOT_PARENT_ENDED;
			return after && after == served->before ? TL_ROOT_AMBIGUOUS :
								  served->request;
		}
		number = node->parent;
	}
	return 0;
}

/*
 * The node has been copied. Was its last request answered by then? Then what runs in it has gone on
 * with something else, or has set a timer for the next request.
 */
static __always_inline void tl_py_goes_on(struct tl_py_node *copied)
{
	const struct tl_py_node *node = copied;
	const struct tl_served *served;
	__u64 last, owner;
	int i;

	for (i = 0; i < TL_PY_DEPTH && node; i++) {
		last = node->last;
		owner = node->owner;
		/* uvloop reads in no context */
		served = last || !owner ? NULL : bpf_map_lookup_elem(&tl_serving, &owner);
		if (served)
			last = served->request;
		if (last) {
			if (!tl_is_unanswered(last))
				copied->after = last;
			return;
		}
		node = tl_py_node(node->parent);
	}
}

/* The request `key` of the connection `socket` was read in the context of this node. */
static __always_inline void tl_py_own(__u64 number, __u64 socket, __u64 key)
{
	struct tl_py_node *node;
	int i;

	for (i = 0; i < TL_PY_DEPTH; i++) {
		node = tl_py_node(number);
		if (!node || node->flags & TL_PY_ACCEPTS)
			return;
		/* what is read here from now on are other requests than the one it was copied for */
		if (!i) {
			node->request = 0;
			node->after = 0;
		}
		if (!node->owner && !(node->flags & TL_PY_SHARED))
			node->owner = socket;
		else if (node->owner != socket)
			node->flags |= TL_PY_SHARED;
		if (node->last != key) {
			node->before = node->last;
			node->last = key;
		}
		number = node->parent;
	}
}

/* The current thread accepts a connection: no connection owns its context. */
static __always_inline void tl_py_accepts(__u64 number)
{
	struct tl_py_node *node;
	int i;

	for (i = 0; i < TL_PY_DEPTH; i++) {
		node = tl_py_node(number);
		if (!node || node->flags & TL_PY_ACCEPTS)
			return;
		node->flags |= TL_PY_ACCEPTS;
		number = node->parent;
	}
}

/*
 * Is the thread the unit although contexts cannot be told, since the agent is away? So it is where
 * the process runs a server of threads, and no other contexts were ever seen in it.
 */
static __always_inline bool tl_py_has_threads(const struct tl_runtime *runtime)
{
	return tl_runs_workers(runtime) && !(runtime->flags & TL_RUNTIME_TASKS);
}

/* What the thread does now is not about the connection that it has met. */
static __always_inline void tl_py_has_met(struct tl_py_thread *thread)
{
	struct tl_py_node *node;

	if (!thread->meets)
		return;
	thread->meets = 0;
	node = tl_py_node(thread->meets_in);
	if (!node)
		return;
	if (!node->most || thread->copies < node->most)
		node->most = thread->copies;
}

/*
 * The current unit has read the request `key` on `socket`. False: the thread is the unit, which
 * runs no context but its own.
 */
static __always_inline bool tl_python_reads(struct tl_runtime *runtime, __u64 key, __u64 socket)
{
#ifdef TL_LEGACY
	return false;
#else
	const struct tl_python_binary *binary = tl_py_binary(runtime->binary);
	struct tl_py_thread *thread;
	struct tl_py_place place;
	__u64 context;

	if (!binary || !tl_py_is_probed())
		return !tl_py_has_threads(runtime);
	thread = tl_py_thread_now(true);
	if (tl_py_context(binary, runtime->base, &context))
		tl_runtime_note(runtime, TL_RUNTIME_READABLE);
	else if (!(thread && thread->greenlet))
		return false;
	tl_serves(socket, key);
	tl_py_find_place(context, thread, &place);
	if (place.entered && !place.node && tl_py_is_own(context, runtime->binary)) {
		place.entered = false;
		if (thread)
			thread->own = context;
	}
	if (thread) {
		thread->socket = socket;
		thread->request = key;
		thread->context = place.context;
		thread->inner = 0;
	}
	if (!tl_py_live_node(place.node))
		return place.entered || place.greenlet ||
		       (thread && thread->waits && thread->enters);
	if (socket)
		tl_py_own(place.node, socket, key);
	return true;
#endif
}

/*
 * The key of the request that the current unit works for, or the reason why it is not known (enum
 * tl_counter). 0: the thread is the unit.
 */
static __always_inline __u64 tl_python_request(const struct tl_runtime *runtime)
{
#ifdef TL_LEGACY
	return 0;
#else
	const struct tl_python_binary *binary = tl_py_binary(runtime->binary);
	const struct tl_py_thread *thread;
	struct tl_py_place place;
	__u64 context, key;

	if (!binary || !tl_py_is_probed())
		return tl_py_has_threads(runtime) ? 0 : TL_ROOT_PYTHON_UNKNOWN;
	thread = tl_py_thread_now(false);
	if (!tl_py_context(binary, runtime->base, &context) && !(thread && thread->greenlet))
		return 0;
	tl_py_find_place(context, thread, &place);
	if (tl_py_live_node(place.node)) {
		key = tl_py_request_of(place.node, true);
		return key ? key : TL_ROOT_PYTHON_TASK;
	}
	if (place.greenlet || (place.entered && !(thread && thread->own == place.context)))
		return TL_ROOT_PYTHON_UNKNOWN;
	return thread && thread->waits && thread->enters ? TL_ROOT_PYTHON_TASK : 0;
#endif
}

/*
 * The current thread waits for several descriptors, or accepts a connection. `number`: its first
 * argument, the descriptor of the listener.
 */
static __always_inline void tl_python_turns(struct tl_runtime *runtime, bool accepts, __u32 number)
{
#ifndef TL_LEGACY
	struct tl_py_thread *thread = tl_py_thread_now(!accepts);
	const struct tl_python_binary *binary;
	struct tl_py_place place;
	__u64 context;

	if (thread) {
		tl_py_has_met(thread);
		thread->socket = 0;
		thread->inner = 0;
		thread->accepts = accepts;
		if (!accepts) {
			thread->waits = 1;
			thread->turn++;
		}
	}
	if (accepts)
		tl_py_takes(runtime, number);
	binary = tl_py_binary(runtime->binary);
	if (!binary)
		return;
	if (!accepts) {
		if (tl_py_is_probed())
			tl_runtime_note(runtime, TL_RUNTIME_TURNED);
		return;
	}
	tl_py_context(binary, runtime->base, &context);
	tl_py_find_place(context, thread, &place);
	tl_py_accepts(place.node);
#endif
}

/*
 * The current thread asks for the peer of the connection behind the descriptor `number`. So does
 * uvloop, in the function that tells a protocol of a connection, in its listener's context.
 */
static __always_inline void tl_python_meets(const struct tl_runtime *runtime, __u32 number)
{
#ifndef TL_LEGACY
	const struct tl_python_binary *binary = tl_py_binary(runtime->binary);
	struct tl_py_thread *thread = tl_py_thread_now(false);
	const struct tl_py_node *node;
	struct tl_py_place place;
	__u64 context, socket;

	if (!binary || !thread || !tl_py_context(binary, runtime->base, &context))
		return;
	socket = tl_descriptor_socket(number);
	/* the protocol itself may ask, too */
	if (thread->meets && thread->meets == socket)
		return;
	tl_py_has_met(thread);
	tl_py_find_place(context, thread, &place);
	node = tl_py_live_node(place.node);
	if (!node || !(node->flags & TL_PY_LISTENS) || node->most == 1)
		return;
	thread->meets = socket;
	thread->meets_in = place.node;
	thread->copies = 1;
#endif
}

/*
 * The current thread listens with the descriptor `number`. uvloop makes a context for each listener,
 * in which it tells the protocol what happens, and calls listen() in the same function.
 */
static __always_inline void tl_python_listens(struct tl_runtime *runtime, __u32 number, __u64 stack)
{
#ifndef TL_LEGACY
	struct tl_py_thread *thread = tl_py_thread_now(false);
	struct tl_py_node *node;

	tl_py_listens(runtime, number);
	if (!thread)
		return;
	if (thread->listens < 2)
		thread->listens++;
	node = tl_py_node(thread->copied);
	if (node && thread->stack - (__u32)stack < TL_PY_FRAMES)
		node->flags |= TL_PY_LISTENS;
	thread->copied = 0;
#endif
}

#endif
