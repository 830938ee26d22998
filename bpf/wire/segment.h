/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* wire/segment.h - TCP segments, and which bytes of a direction come next. */
#ifndef THROUGHLINE_WIRE_SEGMENT_H
#define THROUGHLINE_WIRE_SEGMENT_H

#include "core/compat.h"

#define TL_WINDOW_GROWS (1 << 20) /* a window may have grown by so many bytes */

/* Which byte of a direction is expected next. */
struct tl_sequence {
	__u32 next; /* its TCP sequence number */
	__u32 known; /* `next` is valid */
};

/* A TCP segment with payload. */
struct tl_segment {
	__u32 off; /* of the payload in the packet */
	__u32 len; /* of the payload */
	__u32 seq; /* of its first byte */
	__u32 ip_len;
};

/* Finds the TCP payload of a packet that starts at its IP header. Returns its length. */
static __always_inline __u32 tl_payload(struct __sk_buff *skb, struct tl_segment *segment)
{
	void *data = (void *)(long)skb->data;
	void *data_end = (void *)(long)skb->data_end;
	struct tcphdr *tcp;
	__u32 ip_len, total;

	if (skb->protocol == bpf_htons(0x0800)) {
		struct iphdr *ip = data;

		if ((void *)(ip + 1) > data_end || ip->protocol != IPPROTO_TCP)
			return 0;
		ip_len = ip->ihl * 4;
	} else if (skb->protocol == bpf_htons(0x86dd)) {
		struct ipv6hdr *ip = data;

		if ((void *)(ip + 1) > data_end || ip->nexthdr != IPPROTO_TCP)
			return 0;
		ip_len = sizeof(*ip);
	} else {
		return 0;
	}
	total = skb->len;
	tcp = data + ip_len;
	if ((void *)(tcp + 1) > data_end)
		return 0;
	segment->ip_len = ip_len;
	segment->seq = bpf_ntohl(tcp->seq) + tcp->syn; /* TCP Fast Open: it counts as a byte */
	segment->off = ip_len + tcp->doff * 4;
	if (segment->off >= total)
		return 0;
	segment->len = total - segment->off;
	return segment->len;
}

/* The sender of a packet that starts at its IP header, as IPv4-mapped address. */
static __always_inline int tl_sender_address(struct __sk_buff *skb, __u8 *out)
{
	__u32 *address = (__u32 *)out;

	if (skb->protocol != bpf_htons(0x0800))
		return bpf_skb_load_bytes(skb, 8, out, 16);
	address[2] = bpf_htonl(0xffff);
	return bpf_skb_load_bytes(skb, 12, &address[3], 4);
}

/*
 * Will TCP accept the segment? The hook runs before TCP looks at the sequence number: any host that
 * knows the addresses and ports of a connection can send a segment for it. TCP drops bytes beyond
 * the window that the socket has offered, and bytes that it has acknowledged are not new. The
 * window may be growing at this moment.
 */
static __always_inline bool tl_in_window(struct bpf_sock *sk, const struct tl_segment *segment)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	__u32 start, end;

	if (!tcp)
		return true;
	start = tcp->rcv_wup;
	end = start + tcp->rcv_wnd + TL_WINDOW_GROWS;
	return (__s32)(segment->seq + segment->len - start) >= 0 &&
	       (__s32)(segment->seq - end) <= 0;
}

/* The segment is not parsed: what comes later is still in step. */
static __always_inline void tl_pass(struct tl_sequence *sequence, const struct tl_segment *segment)
{
	__u32 next = segment->seq + segment->len;

	if ((__s32)(next - sequence->next) > 0)
		sequence->next = next;
}

#endif
