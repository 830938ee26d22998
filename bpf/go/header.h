/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* go/header.h - a header in the memory of a Go program: a map of names to their values. */
#ifndef THROUGHLINE_GO_HEADER_H
#define THROUGHLINE_GO_HEADER_H

#include "go/exchange.h"
#include "proto/limits.h"

#define TL_GO_GROUPS_MAX 8 /* the most groups of a map that are read, of eight pairs each */

/*
 * The length of a header's name if it is `traceparent` or `tracestate`, in any case; else 0.
 * `*names` counts the names that could be read.
 */
static __always_inline __u32 tl_go_name(__u64 key, __u32 *names)
{
	__u64 string[2] = {};
	char name[16] __attribute__((aligned(8))) = {};
	__u64 *words = (__u64 *)name;

	/* a pair that was deleted from a map of buckets keeps its length */
	if (bpf_probe_read_user(string, sizeof(string), (void *)key) || !string[0] || !string[1])
		return 0;
	if (string[1] != 10 && string[1] != 11) {
		*names += 1;
		return 0;
	}
	if (string[1] == 11) {
		if (bpf_probe_read_user(name, 11, (void *)string[0]))
			return 0;
		*names += 1;
		words[0] |= 0x2020202020202020ULL;
		words[1] |= 0x202020ULL;
		return tl_go_is(name, (char[16]){ "traceparent" }) ? 11 : 0;
	}
	if (bpf_probe_read_user(name, 10, (void *)string[0]))
		return 0;
	*names += 1;
	words[0] |= 0x2020202020202020ULL;
	words[1] |= 0x2020ULL;
	return tl_go_is(name, (char[16]){ "tracestate" }) ? 10 : 0;
}

/*
 * Reads the value of the header whose name has `length` letters. `alone`: there is no other value.
 */
static __always_inline void tl_go_value(struct tl_go_exchange *go, __u32 length, __u64 string,
					bool alone)
{

	if (length == 11) {
		if (!alone || go->header & TL_HEADER_HAS_TRACEPARENT)
			go->header |= TL_HEADER_BAD_TRACEPARENT;
		go->header |= TL_HEADER_HAS_TRACEPARENT;
		go->text.traceparent_len = tl_go_string(go->text.traceparent, 64, string);
	} else {
		if (!alone || go->header & TL_HEADER_HAS_TRACESTATE)
			go->header |= TL_HEADER_BAD_TRACESTATE;
		go->header |= TL_HEADER_HAS_TRACESTATE;
		go->text.tracestate_len =
			tl_go_string(go->text.tracestate, TL_TRACESTATE_MAX, string);
		if (go->text.tracestate_len > TL_TRACESTATE_MAX)
			go->header |= TL_HEADER_BAD_TRACESTATE;
	}
}

/*
 * Reads a header where it is one of ours. Returns 1 where the name could be read, else 0. A global
 * function, which the verifier walks once.
 */
__noinline int tl_go_header(struct tl_go_exchange *go, __u64 key, __u64 value)
{
	__u32 names = 0, length = tl_go_name(key, &names);
	__u64 values[2] = {};

	if (!go || !names)
		return 0;
	if (bpf_probe_read_user(values, sizeof(values), (void *)value))
		return 0;
	go->fields += values[1] < TL_LIMIT_FIELDS ? values[1] : TL_LIMIT_FIELDS;
	if (length && values[1])
		tl_go_value(go, length, values[0], values[1] == 1);
	return names;
}

/* Addresses of the eight pairs of a group of a map. */
struct tl_go_group {
	__u64 keys;
	__u64 values;
	__u32 key_step;
	__u32 value_step;
};

/*
 * Reads the pairs of a group. Returns how many there are. A global function, which the verifier
 * walks once.
 */
__noinline int tl_go_pairs(struct tl_go_exchange *go, struct tl_go_group *group)
{
	int i, n = 0;

	if (!go || !group)
		return 0;
	for (i = 0; i < 8; i++)
		n += tl_go_header(go, group->keys + i * group->key_step,
				  group->values + i * group->value_step);
	return n;
}

/*
 * Swiss tables: internal/runtime/maps. Keys of deleted pairs are zero. True: all pairs were read.
 */
static __always_inline bool tl_go_swiss(struct tl_go_exchange *go, __u64 map)
{
	struct tl_go_group group = { .key_step = 40, .value_step = 40 };
	__u64 head[4] = {}; /* used, seed, directory, its length */
	__u64 groups[2]; /* address, number less one */
	__u64 table, seen = 0;
	int i, j;

	if (bpf_probe_read_user(head, sizeof(head), (void *)map))
		return false;
	if (!head[3]) {
		group.keys = head[2] + 8;
		group.values = head[2] + 24;
		seen = head[0] ? tl_go_pairs(go, &group) : 0;
		return seen == head[0];
	}
	for (i = 0; i < 2 && i < head[3]; i++) {
		table = tl_user_word(head[2] + 8 * i);
		if (!table || bpf_probe_read_user(groups, sizeof(groups), (void *)(table + 16)))
			return false;
		for (j = 0; j < TL_GO_GROUPS_MAX && j <= groups[1]; j++) {
			group.keys = groups[0] + 328 * j + 8;
			group.values = groups[0] + 328 * j + 24;
			seen += tl_go_pairs(go, &group);
		}
	}
	return seen == head[0];
}

/*
 * Buckets: runtime/map.go until Go 1.23. A map that grows also has old buckets, and some pairs are
 * in both: they are read, but then not all is proven to have been read. True: all pairs were read.
 */
static __always_inline bool tl_go_buckets(struct tl_go_exchange *go, __u64 map)
{
	struct tl_go_group group = { .key_step = 16, .value_step = 24 };
	__u64 head[4] = {}; /* count, flags with the logarithm of buckets, buckets, old ones */
	__u64 bucket, seen = 0;
	__u32 n;
	int i, j;

	if (bpf_probe_read_user(head, sizeof(head), (void *)map))
		return false;
	if (!head[0])
		return true;
	n = 1 << (head[1] >> 8 & 7);
	for (i = 0; i < TL_GO_GROUPS_MAX && i < n; i++) {
		bucket = head[2] + 336 * i;
		for (j = 0; j < 2 && bucket; j++) {
			group.keys = bucket + 8;
			group.values = bucket + 136;
			seen += tl_go_pairs(go, &group);
			bucket = tl_user_word(bucket + 328);
		}
	}
	if (!head[3])
		return seen == head[0];
	for (i = 0; i < TL_GO_GROUPS_MAX && i < n / 2; i++) {
		group.keys = head[3] + 336 * i + 8;
		group.values = head[3] + 336 * i + 136;
		tl_go_pairs(go, &group);
	}
	return false;
}

/* Reads a map of header names to their values. True: all of it was read. */
static __always_inline bool tl_go_headers(const struct tl_go_binary *binary,
					  struct tl_go_exchange *go, __u64 map)
{
	if (!map)
		return true;
	return binary->swiss_maps ? tl_go_swiss(go, map) : tl_go_buckets(go, map);
}

#endif
