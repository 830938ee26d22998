/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * runtimes/java.h - the unit of work of Java: a virtual thread, or a platform thread that serves one
 * request after the other.
 *
 * A virtual thread is one task: what it calls is for the request that it has read.
 *
 * A platform thread may be of a pool that also does the work of other requests. So a process has to
 * earn trust: TL_JAVA_EARNED requests were answered by the thread that had read them. It loses it for
 * good when an answer is written by another thread, when a thread reads a request while the one that
 * it has read before is not answered, when it waits for several descriptors meanwhile, or when a thread
 * of a ForkJoinPool calls: whoever waits there for a result may do the work of others meanwhile. Then
 * nothing is evidence for its calls. Until it has earned trust, they are calls of threads as of any
 * program (evidence/thread.h).
 */
#ifndef THROUGHLINE_RUNTIMES_JAVA_H
#define THROUGHLINE_RUNTIMES_JAVA_H

#include "runtimes/java_thread.h"
#include "trace/request.h"

#define TL_JAVA_EARNED 8
#define TL_JAVA_PLATFORM (1ULL << (TL_EXECUTED_SHIFT - 1)) /* and the id of the kernel's thread */

struct tl_java_unit {
	__u64 request; /* that the thread has read last: key of tl_requests */
	__u32 born; /* platform thread: see tl_born() */
	__u8 shared; /* it has read it while another one was open: it does the work of several */
	__u8 _pad[3];
};

/* What was seen of the platform threads of a JVM. */
struct tl_java_pool {
	__u64 earned; /* requests that were answered by the thread that had read them */
	__u64 contradicted;
};

/* By tl_process_key(0). The oldest give way, and have to earn trust again. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_java_pool);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_java_pools SEC(".maps");

/* By tl_process_key() of the thread's id. The oldest give way. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct tl_java_unit);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_java_units SEC(".maps");

static __always_inline struct tl_java_pool *tl_java_pool_now(void)
{
	__u64 key = tl_process_key(0);
	struct tl_java_pool *pool = bpf_map_lookup_elem(&tl_java_pools, &key);

	if (pool)
		return pool;
	tl_insert_zeros(&tl_java_pools, &key, BPF_NOEXIST);
	return bpf_map_lookup_elem(&tl_java_pools, &key);
}

/* Something was seen that says that the process's threads do the work of several requests. */
static __always_inline void tl_java_contradicted(struct tl_java_pool *pool)
{
	if (!pool)
		return;
	if (!pool->contradicted)
		tl_count(TL_JAVA_CONTRADICTED);
	__sync_fetch_and_add(&pool->contradicted, 1);
}

/* What the current platform thread works for, or NULL. */
static __always_inline const struct tl_java_unit *tl_java_platform(void)
{
	__u64 key = tl_process_key(TL_JAVA_PLATFORM | tl_current_tid());
	const struct tl_java_unit *unit = bpf_map_lookup_elem(&tl_java_units, &key);

	return unit && tl_is_born(tl_current_task(), unit->born) ? unit : NULL;
}

/* The thread `reader` has read the request: the kernel's id, or TL_JAVA_VIRTUAL. */
static __always_inline void tl_java_note_reader(__u64 key, __u32 reader)
{
	struct tl_request *request = bpf_map_lookup_elem(&tl_requests, &key);

	if (request && tl_is_request(request, key))
		request->java = reader;
}

/*
 * The current thread begins to answer the request `key`, and `unit` is for another one, or NULL. Does
 * that say that it does the work of several requests? Not where no read of the request was seen, as of
 * one that was being served when the JVM became known. But then its own request has to be answered.
 */
static __always_inline bool tl_java_shares(__u64 key, const struct tl_java_unit *unit)
{
	const struct tl_request *request = bpf_map_lookup_elem(&tl_requests, &key);
	__u32 reader = request ? request->java : 0;

	if (unit && tl_is_unanswered(unit->request))
		return true;
	return reader && reader != tl_current_tid();
}

/*
 * The current thread has read the request `request`. Returns whether it is a virtual thread: nothing
 * else is evidence then.
 */
static __always_inline bool tl_java_reads(const struct tl_runtime *runtime, __u64 request)
{
	struct tl_java_unit unit = { .request = request }, *known;
	bool other;
	__u64 key, id;

	tl_java_find(runtime->binary, runtime->base);
	id = tl_java_virtual(runtime);
	if (id == TL_JAVA_ID_MAX) {
		tl_java_note_reader(request, tl_current_tid());
		return true;
	}
	key = tl_process_key(id ? id : TL_JAVA_PLATFORM | tl_current_tid());
	unit.born = tl_born(tl_current_task());
	known = bpf_map_lookup_elem(&tl_java_units, &key);
	if (known && known->request == request)
		return id;
	tl_java_note_reader(request, id ? TL_JAVA_VIRTUAL : tl_current_tid());
	other = known && (id || known->born == unit.born) && tl_is_unanswered(known->request);
	if (id)
		unit.shared = other || (known && known->shared);
	else if (other)
		tl_java_contradicted(tl_java_pool_now());
	bpf_map_update_elem(&tl_java_units, &key, &unit, BPF_ANY);
	return id;
}

/* The current thread begins to answer the request `request`. */
static __always_inline void tl_java_answers(const struct tl_runtime *runtime, __u64 request)
{
	const struct tl_java_unit *unit = tl_java_platform();
	struct tl_java_pool *pool;
	__u64 key;

	if (unit && unit->request == request) {
		pool = tl_java_pool_now();
		if (pool && pool->earned < TL_JAVA_EARNED)
			__sync_fetch_and_add(&pool->earned, 1);
		return;
	}
	/* a virtual thread may answer what another one has read */
	if (tl_java_virtual(runtime))
		return;
	key = tl_process_key(0);
	pool = bpf_map_lookup_elem(&tl_java_pools, &key);
	if ((unit || (pool && pool->earned)) && tl_java_shares(request, unit))
		tl_java_contradicted(tl_java_pool_now());
}

/*
 * The current thread waits for several descriptors. One that does so while its request is unanswered
 * is an event loop (Netty), however few requests there are at a time.
 */
static __always_inline void tl_java_turns(void)
{
	const struct tl_java_unit *unit = tl_java_platform();

	if (unit && tl_is_unanswered(unit->request))
		tl_java_contradicted(tl_java_pool_now());
}

/* Is the current thread one of a ForkJoinPool? */
static __always_inline bool tl_java_forks(void)
{
	char comm[16] = {};

	BPF_CORE_READ_INTO(&comm, tl_current_task(), comm);
	return *(__u64 *)comm == 0x6e696f4a6b726f46ULL; /* ForkJoin */
}

/* The same as tl_java_request(), for a platform thread. */
static __always_inline __u64 tl_java_trusted(void)
{
	const struct tl_java_unit *unit = tl_java_platform();
	struct tl_java_pool *pool = tl_java_pool_now();

	if (tl_java_forks())
		tl_java_contradicted(pool);
	if (pool && pool->contradicted)
		return unit ? TL_ROOT_JAVA_SHARED_THREAD : TL_ROOT_JAVA_OTHER_THREAD;
	if (!unit || !pool || pool->earned < TL_JAVA_EARNED)
		return 0;
	return unit->request;
}

/*
 * The key of the request that the current unit works for, or the reason why it is not known (enum
 * tl_counter). 0: the unit cannot be told.
 */
static __always_inline __u64 tl_java_request(const struct tl_runtime *runtime)
{
	__u64 key, id = tl_java_virtual(runtime);
	const struct tl_java_unit *unit;

	if (!id)
		return tl_java_trusted();
	if (id == TL_JAVA_ID_MAX)
		return TL_ROOT_JAVA_UNREADABLE;
	key = tl_process_key(id);
	unit = bpf_map_lookup_elem(&tl_java_units, &key);
	if (!unit)
		return TL_ROOT_JAVA_OTHER_THREAD;
	return unit->shared ? TL_ROOT_JAVA_SHARED_THREAD : unit->request;
}

#endif
