/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* io/sockhash.h - the sockets whose sends sk_msg sees. */
#ifndef THROUGHLINE_IO_SOCKHASH_H
#define THROUGHLINE_IO_SOCKHASH_H

#include "core/fionread.h"
#include "trace/flow.h"

/*
 * Is the socket in the sockhash? Where FIONREAD is broken, the agent takes sockets out. It cannot
 * change the flow, but it removes the entry in tl_members.
 */
static __always_inline bool tl_is_enrolled(struct tl_flow *flow)
{
	__u64 socket = flow->endpoints.socket;

	if (!(flow->flags & TL_FLOW_ENROLLED))
		return false;
	if (!tl_config.fionread_broken || bpf_map_lookup_elem(&tl_members, &socket))
		return true;
	flow->flags &= ~TL_FLOW_ENROLLED;
	return false;
}

#endif
