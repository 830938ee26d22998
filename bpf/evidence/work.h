/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * evidence/work.h - the unit of work that runs now, in processes whose runtime tells it.
 *
 * Where the unit can be told, nothing else is evidence in that process: neither the thread, nor
 * when a connection was made.
 */
#ifndef THROUGHLINE_EVIDENCE_WORK_H
#define THROUGHLINE_EVIDENCE_WORK_H

#include "runtimes/java.h"
#include "runtimes/job.h"
#include "runtimes/node.h"
#include "runtimes/proxy.h"
#include "runtimes/python_kept.h"
#include "runtimes/ruby.h"

/*
 * The current unit of work has read the request `key` on `socket`, a connection to `port`. Returns
 * whether units can be told in this process. A global function, to have a stack of its own.
 */
__noinline int tl_work_reads(__u64 key, __u64 socket, __u32 port)
{
	__u32 pid = tl_process_id();
	struct tl_runtime *runtime = tl_runtime_of_reader(pid);

	/* clang passes nothing for an argument that is not used: verifiers refuse that */
	asm volatile("" ::"r"(key), "r"(socket), "r"(port));
	if (!runtime)
		return tl_runtime_is_unreadable(pid);
	switch (runtime->kind) {
	case TL_RUNTIME_PYTHON:
		return tl_python_reads(runtime, key, socket) || !tl_python_serves(pid, port);
	case TL_RUNTIME_JAVA:
		return tl_java_reads(runtime, key);
	case TL_RUNTIME_RUBY:
		return tl_ruby_reads(runtime, key, socket);
#ifndef TL_LEGACY
	case TL_RUNTIME_HAPROXY:
	case TL_RUNTIME_VARNISH:
		tl_proxy_reads(key, socket);
		return true;
	case TL_RUNTIME_NGINX:
		/* its events are followed as well: they tell where the agent is away */
		tl_proxy_reads(key, socket);
		return false;
#endif
	case TL_RUNTIME_NODE:
		return tl_node_reads(key, socket);
	}
	return false;
}

/*
 * The current thread writes: finds what tl_work_request() needs, and takes more stack than its
 * callers have. A global function, to have a stack of its own.
 */
__noinline int tl_work_writes(void)
{
	const struct tl_runtime *runtime = tl_runtime_of(tl_process_id());

	if (!runtime)
		return 0;
	if (runtime->kind == TL_RUNTIME_JAVA)
		tl_java_find(runtime->binary, runtime->base);
	else if (runtime->kind == TL_RUNTIME_NODE)
		tl_node_writes();
	else if (runtime->kind == TL_RUNTIME_RUBY)
		tl_ruby_writes(runtime);
	return 0;
}

/*
 * The current thread hands bytes over to a TLS library, which may not be able to send them yet. Returns
 * the request that the thread shows for them, or 0. A global function, as above.
 */
__noinline __u64 tl_work_offers(void)
{
	const struct tl_runtime *runtime = tl_runtime_of(tl_process_id());

	return runtime && runtime->kind == TL_RUNTIME_NODE ? tl_node_offers() : 0;
}

/* Does the current process show its requests? A global function, as above. */
__noinline int tl_work_shows(void)
{
	const struct tl_runtime *runtime = tl_runtime_of(tl_process_id());

	return runtime && runtime->kind == TL_RUNTIME_NODE;
}

/* The current thread writes such bytes, after tl_work_writes(). A global function, as above. */
__noinline int tl_work_recalls(__u64 request)
{
	const struct tl_runtime *runtime = tl_runtime_of(tl_process_id());

	asm volatile("" ::"r"(request));
	if (runtime && runtime->kind == TL_RUNTIME_NODE)
		tl_node_recalls(request);
	return 0;
}

/* The current thread begins to answer the request `key` on `socket`. A global function, as above. */
__noinline int tl_work_answers(__u64 key, __u64 socket)
{
	const struct tl_runtime *runtime = tl_runtime_of(tl_process_id());

	asm volatile("" ::"r"(key), "r"(socket));
	if (!runtime)
		return 0;
	if (runtime->kind == TL_RUNTIME_JAVA)
		tl_java_answers(runtime, key);
	else if (runtime->kind == TL_RUNTIME_RUBY)
		tl_ruby_answers(key, socket);
	return 0;
}

/* The connection `socket`, or the request that was served there, has ended. A global function, as above. */
__noinline int tl_work_ends(__u64 socket)
{
	asm volatile("" ::"r"(socket));
#ifndef TL_LEGACY
	tl_serves_no_more(&tl_serving, socket);
#endif
	tl_serves_no_more(&tl_ruby_served, socket);
	tl_serves_no_more(&tl_node_serving, socket);
	return 0;
}

/*
 * The key of the request that the current unit of work works for, or the reason why that is not
 * known (enum tl_counter). 0: units cannot be told in this process. A key is never as small as a
 * reason. `pid`: the current process. A global function, to have a stack of its own.
 */
__noinline __u64 tl_work_request(__u32 pid)
{
	const struct tl_runtime *runtime;
#ifndef TL_LEGACY
	__u64 job = tl_job_request();

	if (job)
		return job;
#endif
	runtime = tl_runtime_of(pid);
	if (!runtime)
		return tl_runtime_is_unreadable(pid) ? TL_ROOT_RUNTIME_UNREADABLE : 0;
	switch (runtime->kind) {
	case TL_RUNTIME_PYTHON:
		return tl_python_request(runtime);
	case TL_RUNTIME_JAVA:
		return tl_java_request(runtime);
	case TL_RUNTIME_RUBY:
		return tl_ruby_request(runtime);
	case TL_RUNTIME_NODE:
		return tl_node_request();
	}
	return 0;
}

/* The same for a call of a proxy, which is written to `socket`. */
__noinline __u64 tl_work_passes_on(__u32 pid, __u64 socket)
{
#ifndef TL_LEGACY
	const struct tl_runtime *runtime = tl_runtime_of(pid);

	asm volatile("" ::"r"(socket));
	if (runtime && tl_is_proxy(runtime))
		return tl_proxy_request(runtime, socket);
#endif
	return 0;
}

/* How a unit of work is told in the process `pid`: enum tl_evidence. */
static __always_inline __u8 tl_work_evidence(__u32 pid)
{
	const struct tl_runtime *runtime = bpf_map_lookup_elem(&tl_runtimes, &pid);

	if (runtime && tl_is_proxy(runtime))
		return TL_EVIDENCE_PROXY;
	if (runtime && runtime->kind == TL_RUNTIME_RUBY)
		return TL_EVIDENCE_RUBY;
	if (runtime && runtime->kind == TL_RUNTIME_NODE)
		return TL_EVIDENCE_NODE;
	return runtime && runtime->kind == TL_RUNTIME_JAVA ? TL_EVIDENCE_JAVA : TL_EVIDENCE_PYTHON;
}

/*
 * The reason that is counted where a call of a kernel thread has no parent: in the words of the
 * runtime.
 */
static __always_inline int tl_work_reason(int refused)
{
	__u32 pid = tl_process_id();
	const struct tl_runtime *runtime = bpf_map_lookup_elem(&tl_runtimes, &pid);

	if (refused == TL_ROOT_NO_CONTEXT && runtime && runtime->kind == TL_RUNTIME_JAVA)
		return TL_ROOT_JAVA_OTHER_THREAD;
	return refused;
}

/*
 * Takes the request that the current unit of work works for. Returns -1 where it has one, the
 * reason where it has none (enum tl_counter), 0 where units cannot be told in this process.
 */
static __always_inline int tl_work_parent(__u64 socket, struct tl_parent *parent)
{
	__u32 pid = tl_process_id();
	__u64 key = tl_work_passes_on(pid, socket);

	if (!key)
		key = tl_work_request(pid);
	/* uvloop before 0.23 writes for all tasks, in none: a task has claimed what it wrote */
	if (key == TL_ROOT_PYTHON_TASK && tl_py_is_kept(socket))
		return tl_claimed_parent(socket, parent, key);
	if (key < TL_COUNTERS)
		return key;
	return tl_take_parent(key, tl_work_evidence(pid), parent);
}

/*
 * The current thread connects. Returns the request that it works for, TL_PROXY_NOTHING where none is
 * known, or 0 where that is not told at this moment. A global function, to have a stack of its own.
 */
__noinline __u64 tl_work_connects(void)
{
#ifndef TL_LEGACY
	const struct tl_runtime *runtime = tl_runtime_of(tl_process_id());

	if (runtime && tl_is_proxy(runtime))
		return tl_proxy_connects(runtime);
#endif
	return 0;
}

/*
 * The current thread connects: does its runtime tell for which request, or that this is not known? Then
 * the thread is no evidence, and contradicts nothing. What a JVM tells may change until the call.
 * `shared`: the program has tl_work_request() anyway. Else verifiers would walk all runtimes for this.
 */
static __always_inline bool tl_is_told(bool shared)
{
	__u32 pid = tl_process_id();
	const struct tl_runtime *runtime = tl_runtime_of(pid);

	if (!runtime)
		return tl_runtime_is_unreadable(pid);
	switch (runtime->kind) {
	case TL_RUNTIME_PYTHON:
		return (shared ? tl_work_request(pid) : tl_python_request(runtime)) != 0;
	case TL_RUNTIME_RUBY:
		return runtime->flags & TL_RUNTIME_TAKES;
	case TL_RUNTIME_NODE:
		return true;
	}
	return false;
}

/* The same. A global function, as above. */
__noinline int tl_work_is_told(void)
{
	return tl_is_told(false);
}

/*
 * The current thread begins something else: it waits for several descriptors, or it accepts a
 * connection. `number`: the first argument of the system call. A global function, to have a stack of
 * its own.
 */
__noinline int tl_work_turns(bool accepts, __u32 number)
{
	struct tl_runtime *runtime = tl_runtime_of(tl_process_id());

	asm volatile("" ::"r"(accepts), "r"(number));
	if (!runtime)
		return 0;
	if (runtime->kind == TL_RUNTIME_PYTHON)
		tl_python_turns(runtime, accepts, number);
	else if (runtime->kind == TL_RUNTIME_JAVA && !accepts)
		tl_java_turns();
	return 0;
}

/* The current process tells where it shows a request. A global function, as above. */
__noinline int tl_work_tells(__u64 address)
{
	asm volatile("" ::"r"(address));
	tl_node_tells(address);
	return 0;
}

/*
 * The current thread, whose stack pointer is `stack`, listens with the socket behind the descriptor
 * `number`. A global function, as above.
 */
__noinline int tl_work_listens(__u32 number, __u64 stack)
{
	struct tl_runtime *runtime = tl_runtime_of(tl_process_id());

	asm volatile("" ::"r"(number), "r"(stack));
	if (runtime && runtime->kind == TL_RUNTIME_PYTHON)
		tl_python_listens(runtime, number, stack);
	return 0;
}

/*
 * The current thread asks for the peer of the connection behind the descriptor `number`. A global
 * function, as above.
 */
__noinline int tl_work_meets(__u32 number)
{
	const struct tl_runtime *runtime = tl_runtime_of(tl_process_id());

	asm volatile("" ::"r"(number));
	if (runtime && runtime->kind == TL_RUNTIME_PYTHON)
		tl_python_meets(runtime, number);
	return 0;
}

/*
 * The current thread, whose stack pointer is `stack`, asks for the state of the connection behind the
 * descriptor `number`. A global function, as above.
 */
__noinline int tl_work_takes(__u32 number, __u64 stack)
{
	const struct tl_runtime *runtime = tl_runtime_of(tl_process_id());

	asm volatile("" ::"r"(number), "r"(stack));
	if (runtime && runtime->kind == TL_RUNTIME_RUBY)
		tl_ruby_takes(runtime, number, stack);
	return 0;
}

#endif
