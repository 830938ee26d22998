/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * trace/claim.h - claims: for which request a connection's next request is.
 *
 * The programs of a runtime make a claim where the application makes a call. The request may then
 * be written by another unit of work, on any thread: `observe` and `headers` find the claim by the
 * socket, and need not know the runtime.
 */
#ifndef THROUGHLINE_TRACE_CLAIM_H
#define THROUGHLINE_TRACE_CLAIM_H

#include "trace/request.h"

struct tl_claim {
	__u64 request; /* key of tl_requests, or 0: for no known request */
	__u8 evidence; /* enum tl_evidence */
	__u8 fresh; /* no request has begun on the socket since */
	__u8 _pad[2];
	__u32 turn; /* of the event loop that has made it: see tl_py_is_kept() */
};

/* By socket cookie. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct tl_claim);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_claims SEC(".maps");

/* Claims the next request of the socket for `request`, or for no known request (0). */
static __always_inline void tl_claim(__u64 socket, __u64 request, __u8 evidence)
{
	struct tl_claim claim = { .request = request, .evidence = evidence, .fresh = 1 };

	bpf_map_update_elem(&tl_claims, &socket, &claim, BPF_ANY);
}

/*
 * Takes the request that the socket's next request is claimed for. Returns the same as
 * tl_take_parent(), and `unknown` where there is no claim.
 */
static __always_inline int tl_claimed_parent(__u64 socket, struct tl_parent *parent, int unknown)
{
	struct tl_claim *claim = bpf_map_lookup_elem(&tl_claims, &socket);
	__u64 key;

	if (!claim || !claim->fresh)
		return unknown;
	claim->fresh = 0;
	key = claim->request;
	return key ? tl_take_parent(key, claim->evidence, parent) : TL_ROOT_NO_CONTEXT;
}

#endif
