// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * io/packets.bpf.c - group `packets`: sends a context beside bytes that cannot carry it, in a TCP option
 * of the first segment of what a request writes (docs/packets.md).
 *
 *   sock_ops             connections made while we look: the kernel leaves room for the option, and
 *                        writes it into every copy of that segment
 *   tc, egress           connections older than that: the option is put into the finished packet
 *
 * Rules: only towards peers; never on a request that gets a header. A context belongs to the bytes of
 * one system call, and rides on the segment that starts with the first of them: another segment may
 * hold what somebody else wrote. It is sent again until that byte is acknowledged.
 */
#include "evidence/connect.h"
#include "evidence/exchange.h"
#include "wire/option.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* include/uapi/linux/pkt_cls.h */
#define TC_ACT_UNSPEC (-1)
#define TC_ACT_SHOT 2

#define TL_ETH_IP 0x0800
#define TL_ETH_IPV6 0x86dd
#define TL_IP_FRAGMENT 0x3fff /* more fragments follow, or this is not the first */
#define TL_LINK_BYTES 64 /* what may stand before the IP header */
#define TL_OPTIONS_MAX 40
#define TL_NOPS_TIMESTAMPS 0x0101080a
#define TL_NOPS_SACK 0x0101050a /* of one block */
#define TL_MOVE 128 /* bytes moved at once */
#define TL_MOVE_MAX 9216 /* payload of a segment that an option is put into: jumbo frames */
#define TL_PIECES 8 /* buffers of a send that are added up */

enum tl_offer_state {
	TL_OFFER_NONE = 0,
	TL_OFFER_ACTIVE, /* its first byte was not acknowledged yet */
	TL_OFFER_DONE,
};

enum tl_offer_way {
	TL_WAY_NEVER = 0, /* not the client's end */
	TL_WAY_SOCK_OPS,
	TL_WAY_TC,
};

/* The context that a client connection sends. */
struct tl_offer {
	__u8 trace_id[16];
	__u8 span_id[8];
	__u32 start_seq; /* of the first byte that the context is for */
	__u32 rcv_nxt; /* what had been received then */
	__u8 trace_flags;
	__u8 state; /* enum tl_offer_state */
	__u8 way; /* enum tl_offer_way */
	__u8 room; /* the size of segments leaves room for the option */
	__u8 reserved; /* so does the segment that is being made */
	__u8 refused; /* the other options left no room: counted once */
	__u8 tls; /* its TLS library alone says whose the bytes are */
	__u8 _pad;
};

#ifdef TL_LEGACY
/* Oldest out first: a socket of the second kind has no end that we see. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct tl_offer);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_offers SEC(".maps");

#define TL_OFFER_FIND(sk, cookie) tl_kept(&tl_offers, cookie, false)
#define TL_OFFER_MAKE(sk, cookie) tl_kept(&tl_offers, cookie, true)
#else
struct {
	TL_SOCKET_MAP(struct tl_offer);
} tl_offers SEC(".maps");

#define TL_OFFER_FIND(sk, cookie) bpf_sk_storage_get(&tl_offers, sk, NULL, 0)
#define TL_OFFER_MAKE(sk, cookie) \
	bpf_sk_storage_get(&tl_offers, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE)
#endif

struct tl_context {
	__u8 trace_id[16];
	__u8 span_id[8];
	__u8 trace_flags;
	__u8 tls;
	__u8 _pad[6];
};

/*
 * What the current thread has handed to its TLS library, if that is for this connection (what a thread
 * keeps for itself may leave after what it sends elsewhere), or what Go is going to send on it.
 */
static __always_inline bool tl_tls_context(__u32 tid, __u64 socket, struct tl_context *context)
{
	struct tl_tls_out *out = bpf_map_lookup_elem(&tl_tls_outs, &tid);

	if (!out || !out->pending)
		out = bpf_map_lookup_elem(&tl_socket_outs, &socket);
	if (!out || !out->pending)
		return false;
	if (!out->socket) {
		out->pending = 0;
		tl_count(TL_TLS_NO_SOCKET);
		return false;
	}
	if (out->socket != socket)
		return false;
	out->pending = 0;
	context->tls = 1;
	__builtin_memcpy(context->trace_id, out->trace_id, 16);
	__builtin_memcpy(context->span_id, out->span_id, 8);
	context->trace_flags = out->trace_flags;
	return true;
}

/*
 * For which request does the current thread write to this connection? False: that is not known, or
 * the request gets a header.
 */
static __always_inline bool tl_find_context(struct tl_conn *conn, bool tls, __u64 socket,
					    struct tl_context *context)
{
	struct tl_thread *thread;
	struct tl_parent parent;
	__u32 tid = TL_READ(tl_current_task(), pid);

	if (conn) {
		if (conn->role == TL_ROLE_SERVER)
			return false;
		/* options of its own take the space, and an application's send may take another path */
		if (conn->flags & TL_CONN_MPTCP)
			return false;
		/* plaintext HTTP, or not known yet to be anything else */
		if (conn->flags & TL_CONN_ENROLLED && !(conn->flags & TL_CONN_OPAQUE))
			return false;
	}
	if (!conn || !(conn->flags & TL_CONN_USED)) {
		if (tl_tls_context(tid, socket, context))
			return true;
		if (tls)
			return false;
	}
	thread = tl_thread_now();
	if (!thread)
		return false;
	/*
	 * An event loop decides ticks before it writes; how many requests an opaque connection has
	 * carried since it was made cannot be seen.
	 */
	if (thread->loop && conn && conn->flags & TL_CONN_CONNECTED &&
	    !(conn->flags & TL_CONN_USED))
		return false;
	if (tl_thread_parent(thread, &parent) >= 0)
		return false;
	__builtin_memcpy(context->trace_id, parent.trace_id, 16);
	__builtin_memcpy(context->span_id, &parent.key, 8);
	context->trace_flags = parent.trace_flags;
	return true;
}

static __always_inline bool tl_acknowledges(struct tcp_sock *tcp, const struct tl_offer *offer)
{
	return (__s32)(tcp->snd_una - offer->start_seq) > 0;
}

/* Would this context only say again what the connection has said, for the same request? */
static __always_inline bool tl_says_again(const struct tl_offer *offer, struct tcp_sock *tcp,
					  const struct tl_context *context)
{
	const __u64 *a = (const __u64 *)offer->trace_id;
	const __u64 *b = (const __u64 *)context->trace_id;

	if (offer->state == TL_OFFER_NONE || a[0] != b[0] || a[1] != b[1] || a[2] != b[2])
		return false;
	return offer->state == TL_OFFER_ACTIVE || offer->rcv_nxt == tcp->rcv_nxt;
}

static __always_inline void tl_offer(struct tl_offer *offer, struct tcp_sock *tcp, __u32 seq,
				     const struct tl_context *context)
{
	__builtin_memcpy(offer->trace_id, context->trace_id, 16);
	__builtin_memcpy(offer->span_id, context->span_id, 8);
	offer->trace_flags = context->trace_flags;
	offer->tls = context->tls;
	offer->start_seq = seq;
	offer->rcv_nxt = tcp->rcv_nxt;
	offer->refused = 0;
	offer->state = TL_OFFER_ACTIVE;
}

static __always_inline void tl_offer_follow(struct tl_offer *offer, struct tcp_sock *tcp)
{
	if (offer->state == TL_OFFER_ACTIVE && tl_acknowledges(tcp, offer))
		offer->state = TL_OFFER_DONE;
}

/* Of an option, as the peers understand it. */
static __always_inline __u32 tl_option_fill(struct tl_option *option, const struct tl_offer *offer)
{
	option->kind = TL_OPTION_KIND;
	option->len = offer->trace_flags & TL_FLAG_SAMPLED ? TL_OPTION_SAMPLED_BYTES :
							     TL_OPTION_BYTES;
	__builtin_memcpy(option->trace_id, offer->trace_id, 16);
	__builtin_memcpy(option->span_id, offer->span_id, 8);
	option->trace_flags = offer->trace_flags;
	return option->len;
}

/* A connection of ours stands. */
static __always_inline void tl_established(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct tl_conn *conn = TL_CONN_FIND(sk, bpf_get_socket_cookie(ops));
	struct tl_offer *offer;

	if (!conn || conn->role != TL_ROLE_CLIENT)
		return;
	tl_set_addresses(conn, sk);
	if (!tl_is_peer(conn->peer_addr))
		return;
	offer = TL_OFFER_MAKE(sk, bpf_get_socket_cookie(ops));
	if (!offer) {
		tl_count(TL_FULL_STORAGE);
		return;
	}
	__builtin_memset(offer, 0, sizeof(*offer));
	offer->way = TL_WAY_SOCK_OPS;
	/* it stays set: whether another program has come to need it cannot be seen */
	bpf_sock_ops_cb_flags_set(ops,
				  ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
}

/*
 * Somebody is about to write of whom nothing is known, or who works for nobody. An offer that has no
 * bytes yet (its send has failed, or came to an end before this) would be given theirs. What a TLS
 * library could not write it writes again, before all else.
 */
static __always_inline void tl_offer_withdraw(struct tl_offer *offer, struct tcp_sock *tcp)
{
	if (offer->state == TL_OFFER_ACTIVE && !offer->tls && offer->start_seq == tcp->write_seq)
		offer->state = TL_OFFER_NONE;
}

/* The current thread is about to write to the connection, or is at it. */
static __always_inline void tl_offer_send(struct bpf_sock_ops *ops, struct bpf_sock *sk,
					  struct tl_offer *offer, struct tcp_sock *tcp)
{
	__u64 socket = bpf_get_socket_cookie(ops);
	struct tl_conn *conn = TL_CONN_FIND(sk, socket);
	struct tl_context context = {};

	if (!tl_find_context(conn, offer->tls, socket, &context) ||
	    (conn && !tl_is_peer(conn->peer_addr)))
		tl_offer_withdraw(offer, tcp);
	else if (!tl_says_again(offer, tcp, &context))
		tl_offer(offer, tcp, tcp->write_seq, &context);
}

/*
 * The kernel asks how large a segment may be. It asks first in every send, and again before it cuts
 * what it has into segments: only here may the room for the option come and go. A segment that had
 * it without having been cut for it would be larger than the path carries.
 */
static __always_inline void tl_option_size(struct bpf_sock_ops *ops, struct bpf_sock *sk,
					   struct tl_offer *offer)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

	if (!tcp)
		return;
	tl_offer_follow(offer, tcp);
	/* a socket with an owner has nobody but it at work */
	if (tcp->inet_conn.icsk_inet.sk.sk_lock.owned) {
		if (tl_in_send())
			tl_offer_send(ops, sk, offer, tcp);
		else
			tl_offer_withdraw(offer, tcp);
	}
	offer->room = 0;
	if (offer->state != TL_OFFER_ACTIVE)
		return;
	if (!bpf_reserve_hdr_opt(ops, TL_OPTION_SPACE, 0)) {
		offer->room = 1;
	} else if (!offer->refused) {
		offer->refused = 1;
		tl_count(TL_OPTION_NO_ROOM);
	}
}

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

/* A TCP segment with payload, as it leaves. */
struct tl_leaving {
	__u32 link_len; /* of what stands before the IP header */
	__u32 ip_len;
	__u32 tcp_len;
	__u32 payload;
	__u32 seq;
	__u8 peer[16];
};

/* False: it is none of ours. Without a map: this is what others' packets pay. */
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

/* How much the system call of the current thread sends; 0: that cannot be told, or it does not send. */
__noinline __u64 tl_send_length(void)
{
#if defined(__TARGET_ARCH_x86)
	struct {
		__u64 base;
		__u64 len;
	} piece = {};
	struct pt_regs regs = {};
	__u64 pieces, at, sum = 0;
	__u32 i;

	if (!tl_stack_registers(&regs) || regs.cs != TL_USER_CS || tl_is_compat())
		return 0;
	switch (regs.orig_ax) {
	case 1: /* write */
	case 44: /* sendto */
		return regs.dx;
	case 20: /* writev */
		at = regs.si;
		pieces = regs.dx;
		break;
	case 46: /* sendmsg: msg_iov and msg_iovlen of struct msghdr */
		if (bpf_probe_read_user(&piece, sizeof(piece), (void *)(regs.si + 16)))
			return 0;
		at = piece.base;
		pieces = piece.len;
		break;
	default:
		return 0;
	}
	if (pieces > TL_PIECES)
		return 0;
	for (i = 0; i < TL_PIECES; i++) {
		if (i >= pieces)
			break;
		if (bpf_probe_read_user(&piece, sizeof(piece), (void *)(at + i * sizeof(piece))))
			return 0;
		sum += piece.len;
	}
	return sum;
#else
	return 0;
#endif
}

/*
 * Did this end make the connection? The one that was accepted has its listener's backlog; and a
 * listener may have been given none.
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
 * The connection's offer, when the current thread is the one that sends this segment. It was not sent
 * before, and behind its first byte the socket holds just as much as is being sent: so it starts with
 * what is being sent. Where the socket holds less, the rest is still to come, and does not fit into a
 * segment anyway.
 */
static __always_inline struct tl_offer *tl_offer_packet(struct __sk_buff *skb, struct bpf_sock *sk,
							struct tl_offer *offer,
							struct tcp_sock *tcp,
							const struct tl_leaving *leaving)
{
	__u64 socket = bpf_get_socket_cookie(skb);
	__u32 held = tcp->write_seq - leaving->seq;
	struct tl_context context = {};
	struct tl_conn *conn;
	__u64 length;

	if (leaving->seq != tcp->snd_nxt)
		return offer;
	conn = TL_CONN_FIND(sk, socket);
	if (!offer && conn && conn->role == TL_ROLE_SERVER)
		return TL_OFFER_MAKE(sk, socket); /* never: it will not be looked at again */
	length = tl_send_length();
	if (length < held)
		return offer;
	if (!conn && !tl_traced(bpf_skb_cgroup_id(skb)))
		return offer;
	if (!tl_find_context(conn, offer && offer->tls, socket, &context))
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
	if (offer->way != TL_WAY_TC || tl_says_again(offer, tcp, &context))
		return offer;
	tl_offer(offer, tcp, leaving->seq, &context);
	if (length != held) {
		offer->state = TL_OFFER_DONE;
		tl_count(TL_OPTION_TOO_BIG);
	}
	return offer;
}

/* May the segment grow by the option? */
static __always_inline bool tl_option_fits(struct __sk_buff *skb, struct tcp_sock *tcp,
					   const struct tl_leaving *leaving)
{
	__u32 first;

	if (leaving->tcp_len + TL_OPTION_SPACE > sizeof(struct tcphdr) + TL_OPTIONS_MAX) {
		tl_count(TL_OPTION_NO_ROOM);
		return false;
	}
	/* a signature (kinds 19 and 29) covers the header; Linux begins with these two otherwise */
	if (leaving->tcp_len > sizeof(struct tcphdr) &&
	    (bpf_skb_load_bytes_relative(skb, leaving->ip_len + sizeof(struct tcphdr), &first,
					 sizeof(first), BPF_HDR_START_NET) ||
	     (first != bpf_htonl(TL_NOPS_TIMESTAMPS) && first != bpf_htonl(TL_NOPS_SACK)))) {
		tl_count(TL_OPTION_NO_ROOM);
		return false;
	}
	/* what is asked of it is that it stays in one packet; its own headers count as they are */
	if (skb->gso_size || leaving->payload > TL_MOVE_MAX ||
	    leaving->tcp_len + leaving->payload + TL_OPTION_SPACE >
		    (__u32)tcp->tcp_header_len + tcp->mss_cache) {
		tl_count(TL_OPTION_TOO_BIG);
		return false;
	}
	return true;
}

/*
 * Moves the payload, which begins at `start`, back by the room for the option. 0, or an error. Functions
 * of their own, this and tl_send_length(), so that the verifier walks them once.
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

	/* the data offset, in words, is the upper four bits of this one */
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
 * Is it there already? A packet passes one interface after the other where they stand on top of one
 * another.
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
		/* half done: it must not leave; it will be sent again, without */
		tl_count(TL_FORCED_DROP);
		offer->state = TL_OFFER_NONE;
		return TC_ACT_SHOT;
	}
	tl_count(TL_OPTION_WRITTEN);
	return TC_ACT_UNSPEC;
}
