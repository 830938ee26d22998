/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* core/counters.h - what happened, was skipped or was dropped, by reason. */
#ifndef THROUGHLINE_CORE_COUNTERS_H
#define THROUGHLINE_CORE_COUNTERS_H

#include "core/abi.h"
#include "core/compat.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TL_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_counters SEC(".maps");

static __always_inline void tl_count(__u32 reason)
{
	__u64 *value = bpf_map_lookup_elem(&tl_counters, &reason);

	if (value)
		*value += 1;
}

#endif
