/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * io/offer_tc.h - offers of connections that are older than the programs: finds the packet that has
 * to carry the option.
 */
#ifndef THROUGHLINE_IO_OFFER_TC_H
#define THROUGHLINE_IO_OFFER_TC_H

#include "core/registers.h"
#include "io/offer.h"

#define TL_ETH_IP 0x0800
#define TL_ETH_IPV6 0x86dd
#define TL_IP_FRAGMENT 0x3fff /* more fragments follow, or this is not the first */
#define TL_LINK_BYTES 64 /* the most that may stand before the IP header */
#define TL_PIECES 8 /* the most buffers of a send that are added up */

/* An outgoing TCP segment with payload. */
struct tl_leaving {
	__u32 link_len; /* of what stands before the IP header */
	__u32 ip_len;
	__u32 tcp_len;
	__u32 payload;
	__u32 seq;
	__u8 peer[16];
};

/* False: it is no such segment. It uses no map, since every outgoing packet comes here. */
static __always_inline bool tl_leaves(struct __sk_buff *skb, struct tl_leaving *leaving)
{
	__u32 *peer = (__u32 *)leaving->peer;
	struct tcphdr tcp;
	__u32 total;

	if (skb->protocol == bpf_htons(TL_ETH_IP)) {
		struct iphdr ip;

		if (bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET) ||
		    ip.protocol != IPPROTO_TCP || ip.frag_off & bpf_htons(TL_IP_FRAGMENT))
			return false;
		leaving->ip_len = ip.ihl * 4;
		total = bpf_ntohs(ip.tot_len);
		peer[2] = bpf_htonl(0xffff);
		peer[3] = ip.daddr;
	} else if (skb->protocol == bpf_htons(TL_ETH_IPV6)) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET) ||
		    ip.nexthdr != IPPROTO_TCP)
			return false;
		leaving->ip_len = sizeof(ip);
		total = sizeof(ip) + bpf_ntohs(ip.payload_len);
		__builtin_memcpy(peer, &ip.daddr, 16);
	} else {
		return false;
	}
	if (bpf_skb_load_bytes_relative(skb, leaving->ip_len, &tcp, sizeof(tcp), BPF_HDR_START_NET))
		return false;
	leaving->tcp_len = tcp.doff * 4;
	if (tcp.syn || leaving->tcp_len < sizeof(tcp) ||
	    total <= leaving->ip_len + leaving->tcp_len || skb->len < total)
		return false;
	leaving->payload = total - leaving->ip_len - leaving->tcp_len;
	leaving->link_len = skb->len - total;
	leaving->seq = bpf_ntohl(tcp.seq);
	return leaving->link_len <= TL_LINK_BYTES;
}

/*
 * How many bytes the current system call sends. 0: that is not known, or it does not send. A global
 * function, which the verifier walks once.
 */
__noinline __u64 tl_send_length(void)
{
	struct {
		__u64 base;
		__u64 len;
	} piece = {};
	struct tl_syscall call = {};
	__u64 sum = 0;
	__u32 i;

	if (!tl_read_syscall(&call))
		return 0;
	switch (call.number) {
	case TL_NR_WRITE:
	case TL_NR_SENDTO:
		return call.third;
	case TL_NR_WRITEV:
		break;
	case TL_NR_SENDMSG: /* msg_iov and msg_iovlen of struct msghdr */
		if (bpf_probe_read_user(&piece, sizeof(piece), (void *)(call.second + 16)))
			return 0;
		call.second = piece.base;
		call.third = piece.len;
		break;
	default:
		return 0;
	}
	if (call.third > TL_PIECES)
		return 0;
	for (i = 0; i < TL_PIECES; i++) {
		if (i >= call.third)
			break;
		if (bpf_probe_read_user(&piece, sizeof(piece),
					(void *)(call.second + i * sizeof(piece))))
			return 0;
		sum += piece.len;
	}
	return sum;
}

/*
 * Did this end make the connection? An accepted socket has the backlog of its listener. A listener
 * may have a backlog of 0, so it is looked up, too.
 */
static __always_inline bool tl_is_client(struct __sk_buff *skb, struct bpf_sock *sk,
					 struct tcp_sock *tcp)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *listener;
	__u32 size = sizeof(tuple.ipv4);

	if (tcp->inet_conn.icsk_inet.sk.sk_max_ack_backlog)
		return false;
	if (sk->family == TL_AF_INET) {
		tuple.ipv4.daddr = tl_keep(sk->src_ip4);
		tuple.ipv4.dport = bpf_htons(tl_keep(sk->src_port));
	} else {
		tuple.ipv6.daddr[0] = tl_keep(sk->src_ip6[0]);
		tuple.ipv6.daddr[1] = tl_keep(sk->src_ip6[1]);
		tuple.ipv6.daddr[2] = tl_keep(sk->src_ip6[2]);
		tuple.ipv6.daddr[3] = tl_keep(sk->src_ip6[3]);
		tuple.ipv6.dport = bpf_htons(tl_keep(sk->src_port));
		size = sizeof(tuple.ipv6);
	}
	listener = bpf_sk_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!listener)
		return true;
	bpf_sk_release(listener);
	return false;
}

/*
 * Makes the connection's offer, when the current thread sends this segment. The segment was not
 * sent before, and from its first byte on the socket holds as many bytes as the send has: so it
 * starts with the first byte of the send. Where the socket holds fewer, the rest still has to come,
 * and does not fit into one segment. Returns the offer, or NULL.
 */
static __always_inline struct tl_offer *tl_offer_packet(struct __sk_buff *skb, struct bpf_sock *sk,
							struct tl_offer *offer,
							struct tcp_sock *tcp,
							const struct tl_leaving *leaving)
{
	__u64 socket = bpf_get_socket_cookie(skb);
	__u32 held = tcp->write_seq - leaving->seq;
	struct tl_announced found = {};
	struct tl_flow *flow;
	__u64 length;

	if (leaving->seq != tcp->snd_nxt)
		return offer;
	flow = TL_FLOW_FIND(sk, socket);
	if (!offer && flow && flow->role == TL_ROLE_SERVER)
		return TL_OFFER_MAKE(sk, socket); /* TL_WAY_NEVER: it is not looked at again */
	length = tl_send_length();
	if (length < held)
		return offer;
	if (!flow && !tl_traced(bpf_skb_cgroup_id(skb)))
		return offer;
	if (!tl_find_context(flow, offer && offer->announced, socket, &found))
		return offer;
	if (!offer) {
		offer = TL_OFFER_MAKE(sk, socket);
		if (!offer) {
			tl_count(TL_FULL_STORAGE);
			return NULL;
		}
		offer->way = TL_WAY_NEVER;
		sk = bpf_sk_fullsock(sk);
		if (sk && tl_is_client(skb, sk, tcp))
			offer->way = TL_WAY_TC;
	}
	if (offer->way != TL_WAY_TC || tl_says_again(offer, tcp, &found.context))
		return offer;
	tl_offer(offer, tcp, leaving->seq, &found);
	if (length != held) {
		offer->state = TL_OFFER_DONE;
		tl_count(TL_OPTION_TOO_BIG);
	}
	return offer;
}

#endif
