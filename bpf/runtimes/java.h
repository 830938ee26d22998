/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * runtimes/java.h - the unit of work of Java: a virtual thread.
 *
 * A virtual thread is one task: what it calls is for the request that it has read. A platform thread
 * may be of a pool that also does the work of other requests, as any kernel thread: the thread is
 * its unit, and evidence/thread.h says how far it is to be trusted.
 */
#ifndef THROUGHLINE_RUNTIMES_JAVA_H
#define THROUGHLINE_RUNTIMES_JAVA_H

#include "runtimes/java_thread.h"
#include "trace/request.h"

struct tl_java_unit {
	__u64 request; /* that the virtual thread has read last: key of tl_requests */
	__u8 shared; /* it has read it while another one was open: it does the work of several */
	__u8 _pad[7];
};

/* By tl_process_key() of the virtual thread's id. The oldest give way. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct tl_java_unit);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_java_units SEC(".maps");

/* Has the request not begun to be answered? */
static __always_inline bool tl_java_is_open(__u64 key)
{
	const struct tl_request *request = bpf_map_lookup_elem(&tl_requests, &key);

	return request && request->answering != key && tl_is_request(request, key);
}

/* The current unit has read the request `request`. False: the unit cannot be told. */
static __always_inline bool tl_java_reads(const struct tl_runtime *runtime, __u64 request)
{
	__u64 key, id;
	struct tl_java_unit unit = { .request = request }, *known;

	tl_java_find(runtime->binary, runtime->base);
	id = tl_java_virtual(runtime);
	if (!id || id == TL_JAVA_ID_MAX)
		return id;
	key = tl_process_key(id);
	known = bpf_map_lookup_elem(&tl_java_units, &key);
	if (known && known->request == request)
		return true;
	unit.shared = known && (known->shared || tl_java_is_open(known->request));
	bpf_map_update_elem(&tl_java_units, &key, &unit, BPF_ANY);
	return true;
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
		return 0;
	if (id == TL_JAVA_ID_MAX)
		return TL_ROOT_JAVA_UNREADABLE;
	key = tl_process_key(id);
	unit = bpf_map_lookup_elem(&tl_java_units, &key);
	if (!unit)
		return TL_ROOT_JAVA_OTHER_THREAD;
	return unit->shared ? TL_ROOT_JAVA_SHARED_THREAD : unit->request;
}

#endif
