/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* io/option_in.h - a context that comes in a TCP option. */
#ifndef THROUGHLINE_IO_OPTION_IN_H
#define THROUGHLINE_IO_OPTION_IN_H

#include "io/early.h"
#include "wire/option.h"

static __always_inline void tl_option_keep(struct tl_incoming *incoming,
					   const struct tl_option *option)
{
	__builtin_memcpy(incoming->context.trace_id, option->trace_id, 16);
	__builtin_memcpy(incoming->context.span_id, option->span_id, 8);
	incoming->context.trace_flags = option->len == TL_OPTION_BYTES ?
						option->trace_flags &
							(TL_FLAG_SAMPLED | TL_FLAG_RANDOM) :
						TL_FLAG_SAMPLED;
	incoming->fresh = 1;
}

/*
 * Reads the context that a segment carries, if it has one. `lengths`: of the IP header in the upper
 * half, of the TCP header in the lower. A global function, which the verifier walks once.
 */
__noinline int tl_option_in(struct __sk_buff *skb, __u64 lengths)
{
	const struct tl_settings *settings = tl_settings_now();
	struct tl_incoming *incoming, fresh = {};
	struct bpf_sock *sk = skb->sk;
	struct bpf_tcp_sock *tcp;
	struct tl_option *option;
#ifndef TL_LEGACY
	struct tl_early *early;
	__u32 zero = 0;
#endif
	__u8 options[64 + sizeof(*option)] = {};
	__u8 address[16] = {};
	__u32 ip_len = lengths >> 32;
	__u32 tcp_len = lengths;
	__u32 len, pos, seq, ahead;
	__u64 socket;

	if (!settings || !settings->packets || !sk || tcp_len < 20 + TL_OPTION_SPACE)
		return 0;
	len = tcp_len - 20;
	if (len > 40 || bpf_skb_load_bytes(skb, ip_len + 20, options, tl_length(len, 64)))
		return 0;
	pos = tl_find_option(options, len);
	if (!pos)
		return 0;
	option = (struct tl_option *)&options[(pos - 1) & 63];
	if ((option->len != TL_OPTION_SAMPLED_BYTES && option->len != TL_OPTION_BYTES) ||
	    pos - 1 + option->len > len || !tl_any(option->trace_id, 16) ||
	    !tl_any(option->span_id, 8)) {
		tl_count(TL_OPTION_MALFORMED);
		return 0;
	}
	if (!tl_traced(bpf_skb_cgroup_id(skb)))
		return 0;
	if (tl_sender_address(skb, address) || !tl_is_peer(address)) {
		tl_count(TL_OPTION_STRANGER);
		return 0;
	}
#ifndef TL_LEGACY
	if (sk->state == BPF_TCP_LISTEN) {
		early = bpf_map_lookup_elem(&tl_early, &zero);
		if (early && early->waits)
			tl_option_keep(&early->incoming, option);
		else
			tl_count(TL_OPTION_STALE);
		return 0;
	}
#endif
	tcp = sk->state == BPF_TCP_LISTEN ? NULL : bpf_tcp_sock(sk);
	if (!tcp || bpf_skb_load_bytes(skb, ip_len + 4, &seq, 4)) {
		tl_count(TL_OPTION_STALE);
		return 0;
	}
	/* the segment was not received before, and can be received now */
	ahead = bpf_ntohl(seq) + (skb->len - ip_len - tcp_len) - tcp->rcv_nxt;
	if ((__s32)ahead <= 0 || ahead > TL_OPTION_WINDOW) {
		tl_count(TL_OPTION_STALE);
		return 0;
	}
	socket = bpf_get_socket_cookie(skb);
	incoming = bpf_map_lookup_elem(&tl_incoming, &socket);
	if (!incoming) {
		bpf_map_update_elem(&tl_incoming, &socket, &fresh, BPF_NOEXIST);
		incoming = bpf_map_lookup_elem(&tl_incoming, &socket);
		if (!incoming) {
			tl_count(TL_FULL_INCOMING);
			return 0;
		}
	}
	tl_option_keep(incoming, option);
	tl_count(TL_OPTION_READ);
	return 0;
}

#endif
