/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * io/listeners.h - processes that begin to serve: they call listen(). The agent looks at these at
 * once, and not when their turn comes.
 */
#ifndef THROUGHLINE_IO_LISTENERS_H
#define THROUGHLINE_IO_LISTENERS_H

#include "core/process.h"
#include "core/settings.h"

/* Ids of processes, which the agent takes. When it is full, the oldest gives way. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 64);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_listeners SEC(".maps");

static __always_inline void tl_tell_listener(void)
{
	__u32 pid = tl_process_id();

	if (pid && tl_traced(bpf_get_current_cgroup_id()))
		bpf_map_push_elem(&tl_listeners, &pid, BPF_EXIST);
}

#endif
