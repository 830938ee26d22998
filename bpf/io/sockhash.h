/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * io/sockhash.h - the sockets whose sends sk_msg sees.
 */
#ifndef THROUGHLINE_IO_SOCKHASH_H
#define THROUGHLINE_IO_SOCKHASH_H

#include "core/fionread.h"
#include "trace/flow.h"

/*
 * Is the socket in the sockhash? Where FIONREAD is broken, user space takes sockets out, which cannot change what
 * we keep of them: that one is no member any more tells.
 */
static __always_inline bool tl_is_enrolled(struct tl_flow *flow)
{
	__u64 socket = flow->endpoints.socket;

	if (!(flow->flags & TL_FLOW_ENROLLED))
		return false;
	if (!tl_config.fionread_broken || bpf_map_lookup_elem(&tl_members, &socket))
		return true;
	flow->flags &= ~TL_FLOW_ENROLLED;
	/* what it has sent until now sk_msg has parsed, up to next_seq */
	flow->sequence[TL_OUT].known = 1;
	return false;
}

#endif
