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
 * accepts for it? Then it proves something, but not by a request that it has read elsewhere. `port`:
 * where the connection was made on which it has read one; or TL_PY_ANY_PORT. Any other thread is as
 * in a program that is not known. A global function, to have a stack of its own.
 */
__noinline int tl_python_serves(__u32 pid, __u32 port)
{
#ifdef TL_LEGACY
	/* no server is known there by the thread that accepts */
	asm volatile("" ::"r"(pid), "r"(port));
	return true;
#else
	const struct tl_runtime *runtime = bpf_map_lookup_elem(&tl_runtimes, &pid);

	/* clang passes nothing for an argument that is not used: verifiers refuse that */
	asm volatile("" ::"r"(pid), "r"(port));
	if (!runtime || !runtime->acceptor ||
	    (runtime->flags & (TL_RUNTIME_WORKERS | TL_RUNTIME_SHARED)) != TL_RUNTIME_WORKERS)
		return true;
	if (!runtime->port)
		return port != TL_PY_ANY_PORT;
	if (port == runtime->port)
		return true;
	return (runtime->pool || tl_py_is_acceptor(runtime) ||
		TL_READ(tl_current_task(), start_time) > runtime->since_ns) ==
	       (port == TL_PY_ANY_PORT);
#endif
}

/* The port of the socket behind the descriptor `number`, or 0: it has none. */
static __always_inline __u16 tl_descriptor_port(__u32 number)
{
	struct sock *sk = tl_descriptor_sock(number);
	__u16 family = sk ? BPF_CORE_READ(sk, __sk_common.skc_family) : 0;

	if (family != TL_AF_INET && family != TL_AF_INET6)
		return 0;
	return BPF_CORE_READ(sk, __sk_common.skc_num);
}

/* The process is no known server any more, for as long as it lives. */
static __always_inline void tl_py_shares(struct tl_runtime *runtime)
{
	tl_runtime_note(runtime, TL_RUNTIME_SHARED);
}

/*
 * The current thread accepts a connection from the listener behind the descriptor `number`. The thread
 * that accepts for the server notes where. No other one may accept there. Where two others accept for
 * the first time at one moment, one note may be lost, until that thread accepts again.
 */
static __always_inline void tl_py_takes(struct tl_runtime *runtime, __u32 number)
{
	__u16 port, *others = runtime->others;
	bool serves;
	int i;

	if (!runtime->acceptor)
		return;
	port = tl_descriptor_port(number);
	if (!port)
		return;
	serves = tl_py_is_acceptor(runtime);
	if (runtime->port) {
		if (serves != (runtime->port == port))
			tl_py_shares(runtime);
		return;
	}
	if (serves) {
		runtime->since_ns = bpf_ktime_get_ns();
		runtime->port = port;
	}
#pragma unroll
	for (i = 0; i < 4; i++) {
		if (others[i] == port) {
			if (serves)
				tl_py_shares(runtime);
			return;
		}
		if (!others[i]) {
			if (!serves)
				others[i] = port;
			return;
		}
	}
	if (!serves)
		tl_py_shares(runtime); /* no more are noted */
}

/*
 * The current process listens with the socket behind the descriptor `number`. The server that is known
 * has listened before it was: now it has ended, and what follows on its port is the application's own.
 */
static __always_inline void tl_py_listens(struct tl_runtime *runtime, __u32 number)
{
	if (runtime->acceptor && runtime->port && tl_descriptor_port(number) == runtime->port)
		tl_py_shares(runtime);
}

#endif
