/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * runtimes/proxy.h - the unit of work of a proxy: a stream of HAProxy, a fetch of Varnish, a request
 * of nginx.
 *
 * The probes (proxies.bpf.c) tell for which request a thread works while a function of the proxy
 * runs. A connection that is made meanwhile is claimed for that request. HAProxy and Varnish also write
 * meanwhile, on a connection that it has kept; nginx's probe claims that connection.
 */
#ifndef THROUGHLINE_RUNTIMES_PROXY_H
#define THROUGHLINE_RUNTIMES_PROXY_H

#include "core/abi.h"
#include "core/counters.h"
#include "core/registers.h"
#include "runtimes/descriptor.h"
#include "runtimes/runtime.h"
#include "trace/claim.h"

/* What the current thread of a proxy does. */
struct tl_proxy_thread {
	__u64 request; /* key of tl_requests that it works for, or 0: which one is not known */
	__u64 argument; /* of the function that is called */
	__u32 born; /* see tl_born() */
	__u16 binary; /* index of the file whose probes have seen it */
	__u8 works; /* it is in the function during which it works for `request` */
	__u8 makes; /* it makes a stream or a fetch, for the request `argument` */
};

/* By thread id. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct tl_proxy_thread);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_proxy_threads SEC(".maps");

/* By the index in the cookies of the probes. The agent removes an entry before the probes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct tl_proxy_binary);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_proxy_bins SEC(".maps");

/* The process id of the agent whose probes are attached; 0: there are none. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_proxy_agent SEC(".maps");

static __always_inline bool tl_is_proxy(const struct tl_runtime *runtime)
{
	return runtime->kind == TL_RUNTIME_HAPROXY || runtime->kind == TL_RUNTIME_NGINX ||
	       runtime->kind == TL_RUNTIME_VARNISH;
}

/* Are the probes attached that tell what this process does? */
static __always_inline bool tl_proxy_is_probed(const struct tl_runtime *runtime)
{
	__u32 zero = 0, index = runtime->binary;
	__u32 *agent = bpf_map_lookup_elem(&tl_proxy_agent, &zero);

	return agent && *agent && bpf_map_lookup_elem(&tl_proxy_bins, &index);
}

/* What the current thread does, if these probes have seen it; else NULL. */
static __always_inline struct tl_proxy_thread *tl_proxy_thread_now(__u16 binary)
{
	struct task_struct *task = tl_current_task();
	__u32 tid = TL_READ(task, pid);
	struct tl_proxy_thread *thread = bpf_map_lookup_elem(&tl_proxy_threads, &tid);

	if (!thread || thread->binary != binary || !tl_is_born(task, thread->born))
		return NULL;
	return thread;
}

/* The current thread has read the request `key` on the connection `socket`. */
static __always_inline void tl_proxy_reads(__u64 key, __u64 socket)
{
	/* nginx looks whether a client is still there, and takes nothing */
	if (!tl_peeks())
		tl_serves(socket, key);
}

/*
 * The current thread connects: the request that it works for, TL_PROXY_NOTHING where none is known,
 * or 0 where the proxy does not tell.
 */
#define TL_PROXY_NOTHING 1

static __always_inline __u64 tl_proxy_connects(const struct tl_runtime *runtime)
{
	const struct tl_proxy_thread *thread;

	if (!tl_proxy_is_probed(runtime))
		return 0;
	thread = tl_proxy_thread_now(runtime->binary);
	return thread && thread->works && thread->request ? thread->request : TL_PROXY_NOTHING;
}

/*
 * The key of the request that the call on the connection `socket` is made for, or the reason why it is
 * not known (enum tl_counter). 0: the proxy does not tell, and its threads may.
 */
static __always_inline __u64 tl_proxy_request(const struct tl_runtime *runtime, __u64 socket)
{
	const struct tl_proxy_thread *thread;
	struct tl_claim *claim;

	if (!tl_proxy_is_probed(runtime))
		return runtime->kind == TL_RUNTIME_NGINX ? 0 : TL_ROOT_PROXY_UNKNOWN;
	claim = bpf_map_lookup_elem(&tl_claims, &socket);
	thread = tl_proxy_thread_now(runtime->binary);
	if (runtime->kind != TL_RUNTIME_NGINX && thread && thread->works) {
		if (claim)
			claim->fresh = 0;
		return thread->request ? thread->request : TL_ROOT_PROXY_UNKNOWN;
	}
	if (!claim || !claim->fresh)
		return TL_ROOT_PROXY_OTHER;
	claim->fresh = 0;
	return claim->request ? claim->request : TL_ROOT_PROXY_UNKNOWN;
}

#endif
