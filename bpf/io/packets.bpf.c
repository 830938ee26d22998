// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * io/packets.bpf.c - group `packets`: sends a context in a TCP option, beside bytes that cannot
 * carry it: in the first segment of what is written for a request.
 *
 *   sock_ops     connections made while this is attached: the kernel leaves room for the option, and
 *                writes it into each transmission of that segment
 *   tc, egress   older connections: the option is put into the finished packet
 *
 * Rules: only towards peers, and never for a request that gets a header. A context belongs to the
 * bytes of one system call, and is sent in the segment that starts with the first of them: any
 * other segment may hold bytes of another request. It is sent again until that byte is
 * acknowledged.
 */
#include "io/grow.h"
#include "io/offer_sockops.h"
#include "io/offer_tc.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* include/uapi/linux/pkt_cls.h */
#define TC_ACT_UNSPEC (-1)
#define TC_ACT_SHOT 2

SEC("sockops")
int tl_packets_ops(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	struct tl_option option = {};
	struct tl_offer *offer;
	struct tcphdr *tcp;

	if (!sk)
		return 1;
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		tl_connect(ops, sk);
		return 1;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		tl_established(ops, sk);
		return 1;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		offer = TL_OFFER_FIND(sk, bpf_get_socket_cookie(ops));
		if (!offer)
			return 1;
		if (ops->args[0] == BPF_WRITE_HDR_TCP_CURRENT_MSS) {
			tl_option_size(ops, sk, offer);
			return 1;
		}
		offer->reserved = offer->room && ops->skb_len &&
				  !bpf_reserve_hdr_opt(ops, TL_OPTION_SPACE, 0);
		return 1;
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
		offer = TL_OFFER_FIND(sk, bpf_get_socket_cookie(ops));
		if (!offer || !offer->reserved)
			return 1;
		tcp = ops->skb_data;
		if ((void *)(tcp + 1) > ops->skb_data_end ||
		    bpf_ntohl(tcp->seq) != offer->start_seq)
			return 1; /* the kernel fills the room with NOPs */
		if (bpf_store_hdr_opt(ops, &option, tl_option_fill(&option, offer), 0))
			tl_count(TL_OPTION_NO_ROOM);
		else
			tl_count(TL_OPTION_WRITTEN);
		return 1;
	}
	return 1;
}

SEC("tc")
int tl_packets_out(struct __sk_buff *skb)
{
	union {
		struct tl_option option;
		__u8 bytes[TL_OPTION_SPACE];
		__u32 words[TL_OPTION_SPACE / 4];
	} space = {};
	struct tl_leaving leaving = {};
	struct bpf_sock *sk = skb->sk;
	struct tl_offer *offer;
	struct tcp_sock *tcp;
	__u32 len;

	if (!sk || !tl_leaves(skb, &leaving) || !tl_is_peer(leaving.peer))
		return TC_ACT_UNSPEC;
	offer = TL_OFFER_FIND(sk, bpf_get_socket_cookie(skb));
	if (offer && offer->way != TL_WAY_TC)
		return TC_ACT_UNSPEC;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return TC_ACT_UNSPEC;
	if (offer)
		tl_offer_follow(offer, tcp);
	if (tcp->inet_conn.icsk_inet.sk.sk_lock.owned)
		offer = tl_offer_packet(skb, sk, offer, tcp, &leaving);
	if (!offer || offer->state != TL_OFFER_ACTIVE || offer->start_seq != leaving.seq ||
	    tl_has_option(skb, &leaving) || !tl_option_fits(skb, tcp, &leaving))
		return TC_ACT_UNSPEC;

	len = tl_option_fill(&space.option, offer);
	if (len == TL_OPTION_SAMPLED_BYTES)
		space.bytes[TL_OPTION_SAMPLED_BYTES] = 1; /* NOP */
	space.bytes[TL_OPTION_BYTES] = 1;
	if (bpf_skb_change_tail(skb, skb->len + TL_OPTION_SPACE, 0)) {
		tl_count(TL_SKIP_NO_MEMORY);
		return TC_ACT_UNSPEC;
	}
	if (tl_move_payload(skb, leaving.link_len + leaving.ip_len + leaving.tcp_len,
			    leaving.payload) ||
	    tl_grow_headers(skb, &leaving, space.words)) {
		/*
		 * the packet is half changed, so it is dropped; TCP sends it again, without the
		 * option
		 */
		tl_count(TL_FORCED_DROP);
		offer->state = TL_OFFER_NONE;
		return TC_ACT_SHOT;
	}
	tl_count(TL_OPTION_WRITTEN);
	return TC_ACT_UNSPEC;
}
