/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * go/goroutine.h - which goroutine works for which request.
 *
 * A goroutine is a unit of work (evidence/unit.h). Go gives its number only once in a process.
 */
#ifndef THROUGHLINE_GO_GOROUTINE_H
#define THROUGHLINE_GO_GOROUTINE_H

#include "core/counters.h"
#include "go/process.h"
#include "trace/request.h"

#define TL_GO_DEPTH_MAX 16 /* how many goroutines deep a request is passed on */
#define TL_GO_STARTS_MAX 2048 /* entries of tl_go_starts for each binary */
#define TL_GO_NUMBERS 16 /* numbers that a P fetches at once: _GoidCacheBatch */

/*
 * The last goroutine that a goroutine has started without its number being known. By
 * tl_process_key() of the one that has started it.
 */
struct tl_go_first {
	__u64 p; /* the P of Go's runtime that fetches numbers */
	struct tl_unit child;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_go_first);
} tl_go_firsts SEC(".maps");

/*
 * A function that goroutines begin with -> enum tl_go_start. The programs add functions, the agent
 * answers.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct tl_go_start_key);
	__type(value, __u8);
} tl_go_starts SEC(".maps");

/*
 * How many entries of tl_go_starts a binary has, so that none uses up the room of others. The agent
 * resets it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TL_GO_BINARIES);
	__type(key, __u32);
	__type(value, __u32);
} tl_go_started SEC(".maps");

/*
 * A goroutine has no entry. Makes one if the goroutine has the first of the numbers that its P
 * fetched when it began: then its number was not known. The P has fetched no other numbers since.
 */
static __always_inline struct tl_unit *tl_go_first(const struct tl_go_binary *binary,
						   __u64 goroutine, __u64 id)
{
	struct tl_unit child = {};
	struct tl_go_first *first;
	__u64 key;

	if (id % TL_GO_NUMBERS != 1 || binary->g_parent_goid == TL_GO_UNKNOWN)
		return NULL;
	key = tl_process_key(tl_user_word(goroutine + binary->g_parent_goid));
	first = bpf_map_lookup_elem(&tl_go_firsts, &key);
	if (!first || tl_user_word(first->p + binary->p_goidcacheend) != id + TL_GO_NUMBERS)
		return NULL;
	child = first->child;
	key = tl_process_key(id);
	bpf_map_update_elem(&tl_units, &key, &child, BPF_ANY);
	return bpf_map_lookup_elem(&tl_units, &key);
}

/* The entry of the goroutine, if it works for a request that has not ended; else NULL. */
static __always_inline struct tl_unit *tl_go_works(const struct tl_go_binary *binary,
						   __u64 goroutine)
{
	__u64 id = tl_unit_number(goroutine, binary->g_goid), key = tl_process_key(id);
	struct tl_unit *known;

	if (!id)
		return NULL;
	known = bpf_map_lookup_elem(&tl_units, &key);
	if (!known)
		known = tl_go_first(binary, goroutine, id);
	if (!known || !bpf_map_lookup_elem(&tl_requests, &known->request))
		return NULL;
	return known;
}

/*
 * Does a goroutine that begins with `function` (a Go function value) work for the request of the
 * one that starts it?
 */
static __always_inline bool tl_go_inherits(const struct tl_go_binary *binary, __u32 index,
					   __u64 function, __u64 here)
{
	struct tl_go_start_key key = { .binary = index };
	__u8 fresh = TL_GO_START_NEW;
	__u32 *started;
	__u8 *start;

	key.pc = tl_user_word(function) - (here - binary->newproc_at);
	start = bpf_map_lookup_elem(&tl_go_starts, &key);
	if (!start) {
		started = bpf_map_lookup_elem(&tl_go_started, &index);
		if (!started || *started >= TL_GO_STARTS_MAX ||
		    bpf_map_update_elem(&tl_go_starts, &key, &fresh, BPF_NOEXIST))
			tl_count(TL_FULL_GO_STARTS);
		else
			__sync_fetch_and_add(started, 1);
		return false;
	}
	if (*start == TL_GO_START_RECEIVES)
		tl_count(TL_GO_CHILD_RECEIVES);
	return *start == TL_GO_START_INHERITS;
}

/*
 * A goroutine has served a request that has no exchange. Its exchange may have given way to others:
 * then the request still has an entry, which ends here.
 */
static __always_inline void tl_go_gave_way(const struct tl_go_binary *binary, __u64 goroutine)
{
	struct tl_unit *known = tl_go_works(binary, goroutine);
	struct tl_request *request;
	__u64 key;

	if (!known || known->depth)
		return;
	key = known->request;
	request = bpf_map_lookup_elem(&tl_requests, &key);
	if (!request || !(request->flags & TL_REQUEST_PROBED))
		return;
	tl_count(TL_GO_GAVE_WAY);
	tl_request_end(key);
}

#endif
