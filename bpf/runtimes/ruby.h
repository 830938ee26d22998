/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * runtimes/ruby.h - the unit of work of Puma: the thread of its pool that has taken over a request.
 *
 * Any thread of Puma may read a request: a thread of the pool, or the reactor, which hands it to the
 * pool in memory. So the read is no evidence. The thread of the pool that calls the application asks
 * first whether the client is still there: getsockopt(TCP_INFO) on the connection, in Puma 3.12 to
 * 8.0 (closed_socket? in lib/puma/server.rb). From then on it works for the request that was read
 * there, until it asks that of another connection, or another thread asks for it or answers it.
 */
#ifndef THROUGHLINE_RUNTIMES_RUBY_H
#define THROUGHLINE_RUNTIMES_RUBY_H

#include "core/maps.h"
#include "core/process.h"
#include "runtimes/descriptor.h"
#include "runtimes/ruby_object.h"
#include "runtimes/runtime.h"
#include "trace/request.h"

#define TL_RUBY_STACK (64ULL << 20) /* more than any stack of a thread of Ruby */

/* A request that was read on a connection of Puma. */
struct tl_ruby_served {
	__u64 request; /* key of tl_requests */
	__u64 thread; /* that has taken it over: tl_ruby_thread(), or 0 */
};

/* By socket cookie. The oldest give way: calls for their requests have no parent then. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, __u64);
	__type(value, struct tl_ruby_served);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_ruby_served SEC(".maps");

/* What a thread works for. */
struct tl_ruby_work {
	__u64 socket; /* cookie of the connection */
	__u64 request; /* key of tl_requests */
	__u64 name[2]; /* of the thread: another one may run on the kernel's thread later */
	__u64 asked; /* it has asked for the state of the connection; 0: its object was read */
};

/* By tl_ruby_thread(). */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct tl_ruby_work);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_ruby_work SEC(".maps");

/* The current thread: its id, and when it began. Never 0. */
static __always_inline __u64 tl_ruby_thread(void)
{
	struct task_struct *task = tl_current_task();

	return (__u64)tl_born(task) << 32 | (__u32)TL_READ(task, pid);
}

/* Eight bytes of the name of the current thread, from `at` on. */
static __always_inline __u64 tl_ruby_name(__u32 at)
{
	struct task_struct *task = tl_current_task();
	__u64 name = 0;

	bpf_core_read(&name, sizeof(name), &task->comm[at]);
	return name;
}

/*
 * Does the current thread, whose stack pointer is `stack`, run on its own stack? Fibers have stacks
 * of their own, and so have threads of Ruby that share threads of the kernel (RUBY_MN_THREADS):
 * there the kernel's thread is no unit.
 */
static __always_inline bool tl_ruby_on_own_stack(__u64 stack)
{
	__u64 top = tl_thread_pointer();

	return top > stack && top - stack < TL_RUBY_STACK;
}

/* A thread has read the request `request` on `socket`. Returns whether reads are no evidence. */
static __always_inline bool tl_ruby_reads(const struct tl_runtime *runtime, __u64 request,
					  __u64 socket)
{
	struct tl_ruby_served served = { .request = request }, *known;

	if (!(runtime->flags & TL_RUNTIME_TAKES))
		return false;
	known = bpf_map_lookup_elem(&tl_ruby_served, &socket);
	if (socket && (!known || known->request != request))
		bpf_map_update_elem(&tl_ruby_served, &socket, &served, BPF_ANY);
	return true;
}

/* The current thread asks for the state of the connection behind `number`. */
static __always_inline void tl_ruby_takes(const struct tl_runtime *runtime, __u32 number,
					  __u64 stack)
{
	struct tl_ruby_work work = { .asked = 1 };
	struct tl_ruby_served *served;
	__u64 thread = tl_ruby_thread();

	if (!(runtime->flags & TL_RUNTIME_TAKES))
		return;
	work.socket = tl_descriptor_socket(number);
	served = work.socket ? bpf_map_lookup_elem(&tl_ruby_served, &work.socket) : NULL;
	if (!served)
		return;
	if (!tl_ruby_on_own_stack(stack)) {
		bpf_map_delete_elem(&tl_ruby_work, &thread);
		served->thread = 0;
		tl_count(TL_RUBY_SHARED_THREAD);
		return;
	}
	work.request = served->request;
	served->thread = thread;
	work.name[0] = tl_ruby_name(0);
	work.name[1] = tl_ruby_name(8);
	bpf_map_update_elem(&tl_ruby_work, &thread, &work, BPF_ANY);
}

/*
 * The current thread is about to write: Ruby's memory tells the connection that it works for, also
 * one by a Unix socket. Where it tells none, what the thread has asked for counts.
 */
static __always_inline void tl_ruby_writes(const struct tl_runtime *runtime)
{
	struct tl_ruby_work fresh = {}, *work;
	struct tl_ruby_served *served = NULL;
	__u64 thread = tl_ruby_thread();

	if (!(runtime->flags & TL_RUNTIME_TAKES) || !runtime->binary)
		return;
	fresh.name[0] = tl_ruby_name(0);
	fresh.name[1] = tl_ruby_name(8);
	if (tl_ruby_in_pool(fresh.name))
		fresh.socket = tl_ruby_works_for(runtime->base, runtime->binary);
	if (fresh.socket)
		served = bpf_map_lookup_elem(&tl_ruby_served, &fresh.socket);
	work = bpf_map_lookup_elem(&tl_ruby_work, &thread);
	if (!served) {
		if (work && !work->asked)
			bpf_map_delete_elem(&tl_ruby_work, &thread);
		return;
	}
	fresh.request = served->request;
	if (work && work->socket == fresh.socket && work->request == fresh.request &&
	    served->thread == thread)
		return;
	served->thread = thread;
	bpf_map_update_elem(&tl_ruby_work, &thread, &fresh, BPF_ANY);
}

/* The current thread begins to answer the request `request` on `socket`. */
static __always_inline void tl_ruby_answers(__u64 request, __u64 socket)
{
	struct tl_ruby_served *served = bpf_map_lookup_elem(&tl_ruby_served, &socket);

	/* the application has taken the connection (rack.hijack): Puma's thread has gone on */
	if (served && served->request == request && served->thread != tl_ruby_thread())
		served->thread = 0;
}

/*
 * The key of the request that the current thread works for, or the reason why it is not known (enum
 * tl_counter). 0: reads are evidence.
 */
static __always_inline __u64 tl_ruby_request(const struct tl_runtime *runtime)
{
	const struct tl_ruby_served *served;
	const struct tl_ruby_work *work;
	__u64 key = tl_ruby_thread();

	if (!(runtime->flags & TL_RUNTIME_TAKES))
		return 0;
	work = bpf_map_lookup_elem(&tl_ruby_work, &key);
	if (!work || work->name[0] != tl_ruby_name(0) || work->name[1] != tl_ruby_name(8))
		return TL_ROOT_RUBY_OTHER_THREAD;
	key = work->socket;
	served = bpf_map_lookup_elem(&tl_ruby_served, &key);
	if (!served || served->request != work->request || served->thread != tl_ruby_thread())
		return TL_ROOT_PARENT_ENDED;
	return work->request;
}

#endif
