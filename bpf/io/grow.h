/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* io/grow.h - puts an option into a finished packet. */
#ifndef THROUGHLINE_IO_GROW_H
#define THROUGHLINE_IO_GROW_H

#include "io/offer_tc.h"

#define TL_OPTIONS_MAX 40
#define TL_NOPS_TIMESTAMPS 0x0101080a
#define TL_NOPS_SACK 0x0101050a /* SACK of one block */
#define TL_MOVE 128 /* bytes moved at once */
#define TL_MOVE_MAX 9216 /* the largest payload of a segment that gets an option: a jumbo frame */

/* May the segment grow by the option? */
static __always_inline bool tl_option_fits(struct __sk_buff *skb, struct tcp_sock *tcp,
					   const struct tl_leaving *leaving)
{
	__u32 first;

	if (leaving->tcp_len + TL_OPTION_SPACE > sizeof(struct tcphdr) + TL_OPTIONS_MAX) {
		tl_count(TL_OPTION_NO_ROOM);
		return false;
	}
	/*
	 * a signature (kinds 19 and 29) would cover the option; without one, Linux writes these two
	 * first
	 */
	if (leaving->tcp_len > sizeof(struct tcphdr) &&
	    (bpf_skb_load_bytes_relative(skb, leaving->ip_len + sizeof(struct tcphdr), &first,
					 sizeof(first), BPF_HDR_START_NET) ||
	     (first != bpf_htonl(TL_NOPS_TIMESTAMPS) && first != bpf_htonl(TL_NOPS_SACK)))) {
		tl_count(TL_OPTION_NO_ROOM);
		return false;
	}
	/* it must stay in one packet */
	if (skb->gso_size || leaving->payload > TL_MOVE_MAX ||
	    leaving->tcp_len + leaving->payload + TL_OPTION_SPACE >
		    (__u32)tcp->tcp_header_len + tcp->mss_cache) {
		tl_count(TL_OPTION_TOO_BIG);
		return false;
	}
	return true;
}

/*
 * Moves the payload, which begins at `start`, to make room for the option in front of it. Returns
 * 0, or an error. A global function, which the verifier walks once.
 */
__noinline int tl_move_payload(struct __sk_buff *skb, __u32 start, __u32 payload)
{
	__u8 bytes[TL_MOVE];
	__u32 i, n;

	for (i = 0; i < TL_MOVE_MAX / TL_MOVE && payload >= TL_MOVE; i++) {
		payload -= TL_MOVE;
		if (bpf_skb_load_bytes(skb, start + payload, bytes, TL_MOVE) ||
		    bpf_skb_store_bytes(skb, start + payload + TL_OPTION_SPACE, bytes, TL_MOVE, 0))
			return -1;
	}
	if (!payload)
		return 0;
	if (payload >= TL_MOVE)
		return -1;
	n = tl_length(payload, TL_MOVE);
	if (bpf_skb_load_bytes(skb, start, bytes, n))
		return -1;
	return bpf_skb_store_bytes(skb, start + TL_OPTION_SPACE, bytes, n, 0);
}

/* Corrects the lengths in the headers, and the checksums over them and over the option. */
static __always_inline int tl_grow_headers(struct __sk_buff *skb, const struct tl_leaving *leaving,
					   __u32 *option)
{
	__u32 tcp = leaving->link_len + leaving->ip_len;
	__u32 check = tcp + __builtin_offsetof(struct tcphdr, check);
	__u32 length = leaving->tcp_len + leaving->payload;
	__u32 at = leaving->link_len;
	__u16 old, new;

	if (bpf_skb_store_bytes(skb, tcp + leaving->tcp_len, option, TL_OPTION_SPACE, 0) ||
	    bpf_l4_csum_replace(skb, check, 0, bpf_csum_diff(NULL, 0, option, TL_OPTION_SPACE, 0),
				0))
		return -1;

	/* the upper four bits of this word are the data offset, in units of four bytes */
	if (bpf_skb_load_bytes(skb, tcp + 12, &old, sizeof(old)))
		return -1;
	new = bpf_htons(bpf_ntohs(old) + (TL_OPTION_SPACE / 4 << 12));
	if (bpf_skb_store_bytes(skb, tcp + 12, &new, sizeof(new), 0) ||
	    bpf_l4_csum_replace(skb, check, old, new, sizeof(new)) ||
	    bpf_l4_csum_replace(skb, check, bpf_htons(length), bpf_htons(length + TL_OPTION_SPACE),
				BPF_F_PSEUDO_HDR | sizeof(new)))
		return -1;

	if (skb->protocol == bpf_htons(TL_ETH_IP)) {
		at += __builtin_offsetof(struct iphdr, tot_len);
		old = bpf_htons(leaving->ip_len + length);
		new = bpf_htons(leaving->ip_len + length + TL_OPTION_SPACE);
		if (bpf_l3_csum_replace(skb,
					leaving->link_len + __builtin_offsetof(struct iphdr, check),
					old, new, sizeof(new)))
			return -1;
	} else {
		at += __builtin_offsetof(struct ipv6hdr, payload_len);
		new = bpf_htons(length + TL_OPTION_SPACE);
	}
	return bpf_skb_store_bytes(skb, at, &new, sizeof(new), 0);
}

/*
 * Has the packet the option already? Where interfaces are stacked, a packet passes several of them.
 */
static __always_inline bool tl_has_option(struct __sk_buff *skb, const struct tl_leaving *leaving)
{
	struct tl_option option;

	if (leaving->tcp_len < sizeof(struct tcphdr) + TL_OPTION_SPACE ||
	    bpf_skb_load_bytes_relative(skb, leaving->ip_len + leaving->tcp_len - TL_OPTION_SPACE,
					&option, sizeof(option), BPF_HDR_START_NET))
		return false;
	return option.kind == TL_OPTION_KIND &&
	       (option.len == TL_OPTION_SAMPLED_BYTES || option.len == TL_OPTION_BYTES);
}

#endif
