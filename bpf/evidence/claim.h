/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * evidence/claim.h - claims: for which request a connection's next request is.
 *
 * A runtime's programs decide it where the call is made; another unit may write it, on any thread.
 */
#ifndef THROUGHLINE_EVIDENCE_CLAIM_H
#define THROUGHLINE_EVIDENCE_CLAIM_H

#include "trace/request.h"

struct tl_claim {
	__u64 request; /* key of tl_requests, or 0: known to be for none that we know */
	__u8 evidence; /* enum tl_evidence */
	__u8 fresh; /* no request has begun since */
	__u8 _pad[6];
};

/* By socket cookie. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct tl_claim);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_claims SEC(".maps");

/* The next request of the socket is a call of `request`, or of no request that we know (0). */
static __always_inline void tl_claim(__u64 socket, __u64 request, __u8 evidence)
{
	struct tl_claim claim = { .request = request, .evidence = evidence, .fresh = 1 };

	bpf_map_update_elem(&tl_claims, &socket, &claim, BPF_ANY);
}

/*
 * Takes the request that the socket's next request was claimed for. Returns as tl_take_parent(),
 * `unknown` where nothing was claimed.
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
