/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * evidence/unit.h - units of work that are not threads, and the requests that they work for.
 *
 * A runtime that runs many tasks on one thread keeps the current task at a place that a BPF program
 * can read. A task is known by its process and its number, which is unique in the process until
 * that executes another program. The probes of the runtime write for each process where the number
 * is.
 */
#ifndef THROUGHLINE_EVIDENCE_UNIT_H
#define THROUGHLINE_EVIDENCE_UNIT_H

#include "core/process.h"
#include "core/registers.h"

#define TL_UNIT_UNKNOWN 0xffff

/* What a unit works for. */
struct tl_unit {
	__u64 request; /* key of tl_requests */
	__u8 depth; /* 0: it has read the request; 1: a unit of depth 0 has started it; … */
	__u8 _pad[7];
};

/* Where a process keeps the number of a unit. */
struct tl_unit_layout {
	__u32 index; /* of the program, in the table of its runtime */
	__u16 number_at; /* offset in the object of a unit, or TL_UNIT_UNKNOWN */
	__u8 _pad[2];
};

/* By tl_process_key(0) of the process. Written by the probes of its runtime. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_unit_layout);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_unit_layouts SEC(".maps");

/* By tl_process_key() of the unit's number. The oldest give way. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct tl_unit);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_units SEC(".maps");

/* The number of the unit whose object is at `address`, or 0. */
static __always_inline __u64 tl_unit_number(__u64 address, __u16 number_at)
{
	if (!address || number_at == TL_UNIT_UNKNOWN)
		return 0;
	return tl_user_word(address + number_at);
}

/*
 * The unit whose object is at `address` has read a request. False: where this process keeps the
 * number is not known.
 */
static __always_inline bool tl_unit_reads(__u64 address, __u64 request)
{
	__u64 number, key = tl_process_key(0);
	struct tl_unit_layout *layout = bpf_map_lookup_elem(&tl_unit_layouts, &key);
	struct tl_unit *known, unit = { .request = request };

	number = layout ? tl_unit_number(address, layout->number_at) : 0;
	if (!number)
		return false;
	key = tl_process_key(number);
	known = bpf_map_lookup_elem(&tl_units, &key);
	if (known && known->request == request && !known->depth)
		return true;
	bpf_map_update_elem(&tl_units, &key, &unit, BPF_ANY);
	return true;
}

#endif
