/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * io/early.h - a request in the segment that also completes the handshake.
 *
 * That happens when the bare ACK was lost or never sent, or when the accept queue was full. The
 * hook runs for the listener then, since the connection's own socket does not exist yet, and it
 * runs before TCP has looked at the segment: anybody may have sent it. TCP makes the connection at
 * once, on this processor, or not at all. So each processor keeps the last one only, and nothing of
 * it goes into any other map before there is a connection. Its sequence numbers tell which
 * connection TCP has made of the segment.
 */
#ifndef THROUGHLINE_IO_EARLY_H
#define THROUGHLINE_IO_EARLY_H

#include "io/payload.h"

#ifndef TL_LEGACY
struct tl_early {
	__u32 seq; /* of the first byte */
	__u32 acknowledges;
	__u32 waits; /* no connection has taken it */
	__u32 _pad;
	struct tl_incoming incoming;
	struct tl_flow flow;
	struct tl_text text;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tl_early);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_early SEC(".maps");

/* Keeps the addresses, ports and sequence numbers of the segment. */
static __always_inline int tl_early_ends(struct __sk_buff *skb, const struct tl_segment *segment,
					 struct tl_early *early)
{
	__u32 *local = (__u32 *)early->flow.endpoints.local_addr;
	struct tcphdr tcp;

	if (tl_sender_address(skb, early->flow.endpoints.peer_addr) ||
	    bpf_skb_load_bytes(skb, segment->ip_len, &tcp, sizeof(tcp)))
		return -1;
	early->flow.endpoints.local_port = bpf_ntohs(tcp.dest);
	early->flow.endpoints.peer_port = bpf_ntohs(tcp.source);
	early->seq = segment->seq;
	early->acknowledges = bpf_ntohl(tcp.ack_seq);
	if (skb->protocol != bpf_htons(0x0800))
		return bpf_skb_load_bytes(skb, 24, local, 16);
	local[2] = bpf_htonl(0xffff);
	return bpf_skb_load_bytes(skb, 16, &local[3], 4);
}

/* Parses a segment that came to a listener: TCP may make a connection of it. */
static __always_inline void tl_early_packet(struct __sk_buff *skb, struct tl_segment *segment)
{
	struct tl_early *early;
	enum tl_start start;
	__u32 zero = 0;
	__u64 cgroup_id;

	early = bpf_map_lookup_elem(&tl_early, &zero);
	if (!early)
		return;
	early->waits = 0;
	start = tl_looks_like_start(skb, segment);
	if (!start)
		return;
	cgroup_id = bpf_skb_cgroup_id(skb);
	if (!tl_traced(cgroup_id))
		return;
	if (start != TL_START_HTTP) {
		tl_count(TL_LOST_EARLY);
		return;
	}
	tl_insert_zeros(&tl_early, &zero, BPF_ANY);
	if (tl_early_ends(skb, segment, early))
		return;
	early->flow.cgroup_id = cgroup_id;
	early->flow.role = TL_ROLE_SERVER;
	early->flow.flags = TL_FLOW_EARLY;
	tl_count(TL_EARLY_READ);
	tl_parse_segment(skb, &early->flow, &early->text, segment, TL_IN);
	early->waits = 1;
}

/* Was the connection made by the segment that this processor has parsed for a listener? */
static __always_inline bool tl_is_early(const struct tl_early *early, struct sock *sk,
					const struct tcp_sock *tcp)
{
	const __u64 *a = (const __u64 *)early->flow.endpoints.local_addr,
		    *b = (const __u64 *)early->flow.endpoints.peer_addr;
	__u64 local[2], peer[2];

	if (!early->waits || early->seq != tcp->rcv_nxt || early->acknowledges != tcp->snd_una ||
	    early->flow.endpoints.peer_port != bpf_ntohs(sk->__sk_common.skc_dport) ||
	    early->flow.endpoints.local_port != sk->__sk_common.skc_num)
		return false;
	tl_copy_address((__u8 *)local, sk->__sk_common.skc_family, sk->__sk_common.skc_rcv_saddr,
			&sk->__sk_common.skc_v6_rcv_saddr);
	tl_copy_address((__u8 *)peer, sk->__sk_common.skc_family, sk->__sk_common.skc_daddr,
			&sk->__sk_common.skc_v6_daddr);
	return a[0] == local[0] && a[1] == local[1] && b[0] == peer[0] && b[1] == peer[1];
}

/* A connection was made: if a segment with data made it, the connection takes what was parsed. */
static __always_inline void tl_take_early(struct sock *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct tl_early *early;
	struct tl_flow *flow;
	struct tl_text *text;
	__u32 zero = 0;
	__u64 socket;

	early = bpf_map_lookup_elem(&tl_early, &zero);
	if (!tcp || !early || !tl_is_early(early, sk, tcp))
		return;
	early->waits = 0;
	flow = bpf_sk_storage_get(&tl_flows, sk, &early->flow, BPF_SK_STORAGE_GET_F_CREATE);
	text = bpf_sk_storage_get(&tl_texts, sk, &early->text, BPF_SK_STORAGE_GET_F_CREATE);
	if (!flow || !text) {
		tl_count(TL_FULL_STORAGE);
		if (flow)
			flow->role = TL_ROLE_OFF;
		return;
	}
	tl_count(TL_EARLY_TAKEN);
	socket = bpf_get_socket_cookie(sk);
	if (early->incoming.fresh) {
		tl_count(TL_OPTION_READ);
		if (bpf_map_update_elem(&tl_incoming, &socket, &early->incoming, BPF_ANY))
			tl_count(TL_FULL_INCOMING);
	}
	flow->endpoints.socket = socket;
	flow->flags &= ~TL_FLOW_EARLY;
	if (!(flow->exchange.flags & TL_EXCHANGE_ACTIVE))
		return; /* the header block goes on in the next segment */
	if (flow->role != TL_ROLE_SERVER) {
		flow->exchange.flags &= ~TL_EXCHANGE_ACTIVE;
		return;
	}
	tl_begin_server(TL_GIVE_EXCHANGE(flow, text), flow->early_header);
	if (flow->flags & TL_FLOW_PIPELINED) {
		/* as in tl_pipelined() */
		tl_request_end(flow->exchange.request);
		flow->exchange.request = 0;
	}
}

#else
/* There is no socket yet, and so no cookie to keep the request by: it is not seen. */
static __always_inline void tl_early_packet(struct __sk_buff *skb, struct tl_segment *segment)
{
	if (tl_looks_like_start(skb, segment) && tl_traced(bpf_skb_cgroup_id(skb)))
		tl_count(TL_LOST_EARLY);
}
#endif

#endif
