/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * trace/durations.h - histograms of the durations of requests, by cgroup, method, status and so on
 * (struct tl_duration_key). The agent makes metrics of them.
 */
#ifndef THROUGHLINE_TRACE_DURATIONS_H
#define THROUGHLINE_TRACE_DURATIONS_H

#include "core/counters.h"
#include "trace/exchange.h"

#define TL_SERIES_MAX 1024 /* entries of tl_durations for each cgroup */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct tl_duration_key);
	__type(value, struct tl_duration);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_durations SEC(".maps");

/*
 * cgroup id -> how many entries of tl_durations it has. Servers choose statuses, and clients
 * methods: without a limit they could fill the map.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_series SEC(".maps");

const __u64 tl_bounds_ns[TL_BUCKETS - 1] = {
	5000000,   10000000,  25000000,   50000000,   75000000,   100000000,  250000000,
	500000000, 750000000, 1000000000, 2500000000, 5000000000, 7500000000, 10000000000,
};

/* May the cgroup have one more entry in tl_durations? */
static __always_inline bool tl_series_left(__u64 cgroup_id)
{
	__u32 *series = bpf_map_lookup_elem(&tl_series, &cgroup_id);
	__u32 one = 1;

	if (!series) {
		bpf_map_update_elem(&tl_series, &cgroup_id, &one, BPF_NOEXIST);
		return true;
	}
	if (*series >= TL_SERIES_MAX)
		return false;
	__sync_fetch_and_add(series, 1);
	return true;
}

/* Adds one finished request to the duration histograms, sampled or not. */
static __always_inline void tl_measure(const struct tl_exchange *exchange, __u16 status,
				       __u64 duration)
{
	struct tl_duration_key key = {
		.cgroup_id = exchange->cgroup_id,
		.status = status,
		.kind = exchange->kind,
		.method = exchange->method,
		.http_minor = exchange->http_minor,
		.tls = exchange->flags & TL_EXCHANGE_TLS ? 1 : 0,
		.http_major = exchange->http_major,
		.grpc = exchange->flags & TL_EXCHANGE_GRPC ? 1 : 0,
	};
	struct tl_duration *value = bpf_map_lookup_elem(&tl_durations, &key);
	__u32 bucket = 0;
	__u32 i;

	if (!value) {
		if (tl_series_left(exchange->cgroup_id))
			tl_insert_zeros(&tl_durations, &key, BPF_NOEXIST);
		value = bpf_map_lookup_elem(&tl_durations, &key);
		if (!value) {
			tl_count(TL_FULL_DURATIONS);
			return;
		}
	}
	for (i = 0; i < TL_BUCKETS - 1; i++) {
		if (duration <= tl_bounds_ns[i])
			break;
		bucket = i + 1;
	}
	value->requests++;
	value->sum_ns += duration;
	if (bucket < TL_BUCKETS)
		value->buckets[bucket]++;
}

#endif
