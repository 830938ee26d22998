/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * runtimes/node.h - the unit of work of Node.js: an asynchronous context, which nothing outside of
 * the process can follow. A preload that the operator has declared shows, while the bytes of a call
 * are written, for which request they are (agent/bundle/release/share/node/context.cjs).
 *
 * Each thread of such a process has 32 bytes of its own. It tells their address by a pwrite64() to
 * /dev/null at TL_NODE_POSITION, which no file has. What the bytes say is the process's own word: it
 * chooses among the requests that were read on the connections behind its descriptors. A request is
 * known by the descriptor of its connection and the time at which the process began to serve it: what
 * is read there later is served when that one was answered, also where the descriptor is another
 * connection's by then.
 */
#ifndef THROUGHLINE_RUNTIMES_NODE_H
#define THROUGHLINE_RUNTIMES_NODE_H

#include "core/settings.h"
#include "runtimes/descriptor.h"
#include "runtimes/runtime.h"
#include "trace/request.h"

#define TL_NODE_POSITION 0x746c6e6f6465ULL
#define TL_NODE_MAGIC 0x65646f6e6e6c7401ULL
#define TL_NODE_HTTP2 0xfffffffeU /* in place of the descriptor + 1: the request came by HTTP/2 */
#define TL_NODE_NS (1000ULL * 1000 * 1000)

/* Where a thread shows its request. */
struct tl_node_thread {
	__u64 address; /* of: the magic number, the descriptor + 1 or 0, seconds, nanoseconds */
	__u64 process; /* tl_process_key(0) */
	__u64 shown; /* see tl_node_shown(): when it began to write */
	__u32 born; /* see tl_born() */
	__u8 _pad[4];
};

/* By thread id. The oldest give way, and tell again. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct tl_node_thread);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_node_threads SEC(".maps");

/* What was read last from a connection. */
struct tl_node_served {
	__u64 request; /* key of tl_requests */
	__u64 read_ns; /* when its first bytes were read */
};

/* By socket cookie: a connection has another descriptor in each process. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct tl_node_served);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_node_serving SEC(".maps");

/* The entry of the current thread, or NULL. */
static __always_inline struct tl_node_thread *tl_node_thread_now(void)
{
	__u32 tid = tl_current_tid();
	struct tl_node_thread *thread = bpf_map_lookup_elem(&tl_node_threads, &tid);

	return thread && tl_is_born(tl_current_task(), thread->born) ? thread : NULL;
}

/*
 * The current thread tells that it shows its request at `address`. Processes that are not traced
 * are ignored: they must not use up the room of others.
 */
static __always_inline void tl_node_tells(__u64 address)
{
	const struct tl_settings *settings = tl_settings_now();
	struct tl_node_thread thread = {};
	struct tl_runtime *known, runtime = {};
	__u32 tid = tl_current_tid(), pid = tl_process_id();

	if (!pid || !settings || !settings->node || !tl_probe_traced() ||
	    tl_user_word(address) != TL_NODE_MAGIC)
		return;
	thread.address = address;
	thread.process = tl_process_key(0);
	thread.shown = TL_ROOT_NODE_UNKNOWN;
	thread.born = tl_born(tl_current_task());
	bpf_map_update_elem(&tl_node_threads, &tid, &thread, BPF_ANY);
	runtime.born = tl_process_born();
	runtime.kind = TL_RUNTIME_NODE;
	known = bpf_map_lookup_elem(&tl_runtimes, &pid);
	if (!known || known->born != runtime.born || known->kind != TL_RUNTIME_NODE)
		bpf_map_update_elem(&tl_runtimes, &pid, &runtime, BPF_ANY);
}

/*
 * The current thread has read the request `request` on `socket` (cookie; 0: inside of TLS, on a
 * connection that is not known). Returns true: nothing else is evidence.
 */
static __always_inline bool tl_node_reads(__u64 request, __u64 socket)
{
	struct tl_node_served *known, served = { .request = request };

	if (!socket)
		return true;
	known = bpf_map_lookup_elem(&tl_node_serving, &socket);
	if (known && known->request == request)
		return true;
	served.read_ns = bpf_ktime_get_ns();
	bpf_map_update_elem(&tl_node_serving, &socket, &served, BPF_ANY);
	return true;
}

/*
 * The key of the request that the current thread shows, or the reason why it is not known (enum
 * tl_counter). 0: the process has executed another program since.
 */
static __always_inline __u64 tl_node_shown(const struct tl_node_thread *thread)
{
	const struct tl_node_served *found;
	__u64 key, word;

	if (thread->process != tl_process_key(0))
		return 0;
	if (tl_user_word(thread->address) != TL_NODE_MAGIC)
		return TL_ROOT_NODE_UNKNOWN;
	word = tl_user_word(thread->address + 8);
	if (!(__u32)word)
		return TL_ROOT_NODE_TASK;
	if ((__u32)word == TL_NODE_HTTP2)
		return TL_ROOT_NODE_HTTP2;
	key = tl_descriptor_socket((__u32)word - 1);
	if (!key) /* its connection is closed */
		return TL_ROOT_PARENT_ENDED;
	found = bpf_map_lookup_elem(&tl_node_serving, &key);
	if (!found)
		return TL_ROOT_NODE_UNKNOWN;
	/* read later than the one that is shown was served, which has been answered then */
	if (found->read_ns > (word >> 32) * TL_NODE_NS + (__u32)tl_user_word(thread->address + 16))
		return TL_ROOT_PARENT_ENDED;
	return found->request;
}

/*
 * The current thread begins to write: keeps what it shows. There is no stack left for that where
 * tl_node_request() is called.
 */
static __always_inline void tl_node_writes(void)
{
	struct tl_node_thread *thread = tl_node_thread_now();

	if (thread)
		thread->shown = tl_node_shown(thread);
}

/*
 * The request that the current thread shows, or 0: it hands over the bytes of a call which the TLS
 * library cannot send yet.
 */
static __always_inline __u64 tl_node_offers(void)
{
	const struct tl_node_thread *thread = tl_node_thread_now();
	__u64 shown = thread ? tl_node_shown(thread) : 0;

	return shown < TL_COUNTERS ? 0 : shown;
}

/* The current thread writes such bytes: they are of `request`. */
static __always_inline void tl_node_recalls(__u64 request)
{
	struct tl_node_thread *thread = tl_node_thread_now();

	if (thread)
		thread->shown = request;
}

/* What the current thread has shown when it began to write: once. See tl_node_shown(). */
static __always_inline __u64 tl_node_request(void)
{
	struct tl_node_thread *thread = tl_node_thread_now();
	__u64 shown;

	if (!thread)
		return TL_ROOT_NODE_UNKNOWN;
	shown = thread->shown;
	thread->shown = TL_ROOT_NODE_UNKNOWN;
	return shown;
}

#endif
