/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * runtimes/python_acceptor.h - a server of threads that is known by the thread that accepts for it.
 */
#ifndef THROUGHLINE_RUNTIMES_PYTHON_ACCEPTOR_H
#define THROUGHLINE_RUNTIMES_PYTHON_ACCEPTOR_H

#include "runtimes/descriptor.h"
#include "runtimes/runtime.h"
#include "wire/address.h"

/*
 * A server of threads is known by the thread that accepts for it, which was seen in the code of that
 * server. It serves a connection itself, or makes a thread for it. All other threads of the process,
 * and what they accept, are the application's own: what they read, and what they call, proves nothing.
 */
static __always_inline bool tl_py_is_acceptor(const struct tl_runtime *runtime)
{
	return tl_thread_pointer() == runtime->acceptor;
}

#define TL_PY_ANY_PORT (1 << 16)

/*
 * May the current thread, of the process `pid`, be one that such a server has made, or the one that
 * accepts for it? `port`: where the connection was made on which it has read a request, or
 * TL_PY_ANY_PORT. A global function, to have a stack of its own.
 */
__noinline int tl_python_serves(__u32 pid, __u32 port)
{
#ifdef TL_LEGACY
	/* no server is known there by the thread that accepts */
	asm volatile("" ::"r"(pid), "r"(port));
	return true;
#else
	const struct tl_runtime *runtime = tl_runtime_of(pid);

	/* clang passes nothing for an argument that is not used: verifiers refuse that */
	asm volatile("" ::"r"(pid), "r"(port));
	if (!runtime || !runtime->acceptor || !(runtime->flags & TL_RUNTIME_WORKERS) ||
	    runtime->flags & TL_RUNTIME_SHARED)
		return true;
	if (!runtime->port || (port != runtime->port && port != TL_PY_ANY_PORT))
		return false;
	return tl_py_is_acceptor(runtime) ||
	       TL_READ(tl_current_task(), start_time) > runtime->since_ns;
#endif
}

/*
 * The current thread accepts a connection from the listener behind the descriptor `number`. The thread
 * that accepts for the server notes where. No other one may accept there.
 */
static __always_inline void tl_py_takes(struct tl_runtime *runtime, __u32 number)
{
	struct sock *sk;
	__u16 family, port = 0;

	if (!runtime->acceptor)
		return;
	sk = tl_descriptor_sock(number);
	family = sk ? BPF_CORE_READ(sk, __sk_common.skc_family) : 0;
	if (family == TL_AF_INET || family == TL_AF_INET6)
		port = BPF_CORE_READ(sk, __sk_common.skc_num);
	if (!port)
		return;
	if (runtime->port) {
		if (tl_py_is_acceptor(runtime) != (runtime->port == port))
			runtime->flags |= TL_RUNTIME_SHARED;
	} else if (runtime->other == port) {
		if (tl_py_is_acceptor(runtime))
			runtime->flags |= TL_RUNTIME_SHARED;
	} else if (tl_py_is_acceptor(runtime)) {
		runtime->since_ns = bpf_ktime_get_ns();
		runtime->port = port;
	} else if (runtime->other) {
		runtime->flags |= TL_RUNTIME_SHARED; /* only one is noted */
	} else {
		runtime->other = port;
	}
}

#endif
