/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * evidence/goroutine.h - which request a goroutine works for: kept by `go`, used by all groups.
 *
 * A goroutine is known by its process and its number, which is never given twice in a process until it
 * executes another program.
 */
#ifndef THROUGHLINE_GO_H
#define THROUGHLINE_GO_H

#include "core/tl.h"

#define TL_GO_DEPTH_MAX 16 /* goroutines that were started by one that was started by one … */

/* What a goroutine works for. */
struct tl_goroutine {
	__u64 request; /* key of tl_requests */
	__u8 depth; /* 0: it read the request; 1: one that did has started it; … */
	__u8 _pad[7];
};

/* For whom the next request of a connection is. */
struct tl_go_call {
	__u64 request; /* key of tl_requests, or 0: known to be for none that we know */
	__u8 evidence; /* enum tl_evidence */
	__u8 fresh; /* no request has begun since */
	__u8 _pad[6];
};

/* Where the fields are in programs of a binary; index 0 is none. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TL_GO_BINARIES);
	__type(key, __u32);
	__type(value, struct tl_go_binary);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_go_binaries SEC(".maps");

/* tl_process_key(0) of a process -> its binary: an index of tl_go_binaries. Kept by its own probes. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_go_processes SEC(".maps");

/* By tl_process_key(). The oldest give way. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct tl_goroutine);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_goroutines SEC(".maps");

/* By socket cookie: what a goroutine has decided before another one writes. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct tl_go_call);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_go_calls SEC(".maps");

#define TL_GO_PROCESS_SHIFT 42 /* process ids are below 2^22 */
#define TL_GO_EXECUTED_SHIFT 36 /* and numbers of goroutines below 2^36, as addresses up to 1 TB */

/*
 * Of something in a process: the number of a goroutine, or an address. Process ids are given again, and stay
 * when a process executes another program (execve), which begins with the same numbers: when the process
 * began, and how many programs it has executed, tells them apart.
 */
static __always_inline __u64 tl_process_key(__u64 what)
{
	struct task_struct *task = tl_current_task(), *leader = TL_READ(task, group_leader);
	__u64 began = TL_READ(leader, start_time);

	began += TL_READ(task, self_exec_id) << TL_GO_EXECUTED_SHIFT;
	return what ^ (began & ((1ULL << TL_GO_PROCESS_SHIFT) - 1)) ^
	       bpf_get_current_pid_tgid() >> 32 << TL_GO_PROCESS_SHIFT;
}

static __always_inline const struct tl_go_binary *tl_go_at(__u32 index)
{
	return index ? bpf_map_lookup_elem(&tl_go_binaries, &index) : NULL;
}

/* A word of the process; 0 where there is none. */
static __always_inline __u64 tl_go_word(__u64 address)
{
	__u64 word = 0;

	if (bpf_probe_read_user(&word, sizeof(word), (void *)address))
		return 0;
	return word;
}

/* The number of a goroutine, or 0. */
static __always_inline __u64 tl_go_id(const struct tl_go_binary *binary, __u64 goroutine)
{
	if (!goroutine || binary->g_goid == TL_GO_UNKNOWN)
		return 0;
	return tl_go_word(goroutine + binary->g_goid);
}

/*
 * A goroutine of a process that is followed has read a request. False: the process is none of those.
 */
static __always_inline bool tl_goroutine_reads(__u64 address, __u64 request)
{
	__u64 id, key = tl_process_key(0);
	__u32 *index = bpf_map_lookup_elem(&tl_go_processes, &key);
	struct tl_goroutine *known, goroutine = { .request = request };
	const struct tl_go_binary *binary;

	binary = index ? tl_go_at(*index) : NULL;
	id = binary ? tl_go_id(binary, address) : 0;
	if (!id)
		return false;
	key = tl_process_key(id);
	known = bpf_map_lookup_elem(&tl_goroutines, &key);
	if (known && known->request == request && !known->depth)
		return true;
	bpf_map_update_elem(&tl_goroutines, &key, &goroutine, BPF_ANY);
	return true;
}

#endif
