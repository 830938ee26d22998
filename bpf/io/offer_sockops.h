/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * io/offer_sockops.h - offers of connections that were made while the programs were attached: the
 * kernel leaves room for the option, and writes it into each transmission of the segment.
 */
#ifndef THROUGHLINE_IO_OFFER_SOCKOPS_H
#define THROUGHLINE_IO_OFFER_SOCKOPS_H

#include "evidence/connect.h"
#include "io/offer.h"

/* A client connection is established. */
static __always_inline void tl_established(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct tl_flow *flow = TL_FLOW_FIND(sk, bpf_get_socket_cookie(ops));
	struct tl_offer *offer;

	if (!flow || flow->role != TL_ROLE_CLIENT)
		return;
	tl_set_addresses(&flow->endpoints, sk);
	if (!tl_is_peer(flow->endpoints.peer_addr))
		return;
	offer = TL_OFFER_MAKE(sk, bpf_get_socket_cookie(ops));
	if (!offer) {
		tl_count(TL_FULL_STORAGE);
		return;
	}
	__builtin_memset(offer, 0, sizeof(*offer));
	offer->way = TL_WAY_SOCK_OPS;
	/* it stays set: another program may need it by then */
	bpf_sock_ops_cb_flags_set(ops,
				  ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
}

/*
 * The current thread is about to write, and works for no known request. An offer that has no bytes
 * yet (its send has failed, or has ended before this) would get the bytes of this send, so it is
 * withdrawn. An announced offer stays: a TLS library writes again what it could not write, before
 * all else.
 */
static __always_inline void tl_offer_withdraw(struct tl_offer *offer, struct tcp_sock *tcp)
{
	if (offer->state == TL_OFFER_ACTIVE && !offer->announced &&
	    offer->start_seq == tcp->write_seq)
		offer->state = TL_OFFER_NONE;
}

/* The current thread writes to the connection. */
static __always_inline void tl_offer_send(struct bpf_sock_ops *ops, struct bpf_sock *sk,
					  struct tl_offer *offer, struct tcp_sock *tcp)
{
	__u64 socket = bpf_get_socket_cookie(ops);
	struct tl_flow *flow = TL_FLOW_FIND(sk, socket);
	struct tl_announced found = {};

	if (!tl_find_context(flow, offer->announced, socket, &found) ||
	    (flow && !tl_is_peer(flow->endpoints.peer_addr)))
		tl_offer_withdraw(offer, tcp);
	else if (!tl_says_again(offer, tcp, &found.context))
		tl_offer(offer, tcp, tcp->write_seq, &found);
}

/*
 * The kernel asks how large a segment may be: first in each send, and again before it cuts data
 * into segments. Room for the option is added or removed only here: a segment that gets the option
 * without room for it would be larger than the path allows.
 */
static __always_inline void tl_option_size(struct bpf_sock_ops *ops, struct bpf_sock *sk,
					   struct tl_offer *offer)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

	if (!tcp)
		return;
	tl_offer_follow(offer, tcp);
	/* while a process owns the socket, only that process works on it */
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

#endif
