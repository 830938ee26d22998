/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* wire/address.h - both ends of a TCP connection. */
#ifndef THROUGHLINE_WIRE_ADDRESS_H
#define THROUGHLINE_WIRE_ADDRESS_H

#include "core/compat.h"

#define TL_AF_INET 2
#define TL_AF_INET6 10

/* A TCP connection, as far as it is known. IPv4 addresses are IPv4-mapped IPv6 addresses. */
struct tl_endpoints {
	__u64 socket; /* cookie of the socket, or 0 when that is not known */
	__u8 local_addr[16];
	__u8 peer_addr[16];
	__u16 local_port;
	__u16 peer_port;
	__u8 _pad[4];
};

/* Keeps the compiler from merging branches: fields of a socket must be read at constant offsets. */
static __always_inline __u32 tl_keep(__u32 value)
{
	asm volatile("" : "+r"(value));
	return value;
}

static __always_inline void tl_set_addresses(struct tl_endpoints *endpoints, struct bpf_sock *sk)
{
	__u32 *local = (__u32 *)endpoints->local_addr;
	__u32 *peer = (__u32 *)endpoints->peer_addr;

	endpoints->local_port = tl_keep(sk->src_port);
	endpoints->peer_port = bpf_ntohs(tl_keep(sk->dst_port));
	if (sk->family == TL_AF_INET) {
		local[2] = bpf_htonl(0xffff);
		local[3] = tl_keep(sk->src_ip4);
		peer[2] = bpf_htonl(0xffff);
		peer[3] = tl_keep(sk->dst_ip4);
		return;
	}
	local[0] = tl_keep(sk->src_ip6[0]);
	local[1] = tl_keep(sk->src_ip6[1]);
	local[2] = tl_keep(sk->src_ip6[2]);
	local[3] = tl_keep(sk->src_ip6[3]);
	peer[0] = tl_keep(sk->dst_ip6[0]);
	peer[1] = tl_keep(sk->dst_ip6[1]);
	peer[2] = tl_keep(sk->dst_ip6[2]);
	peer[3] = tl_keep(sk->dst_ip6[3]);
}

/* An address of a socket, as IPv4-mapped IPv6 address. */
static __always_inline void tl_copy_address(__u8 *out, __u16 family, __u32 ip4,
					    const struct in6_addr *ip6)
{
	__u32 *address = (__u32 *)out;

	if (family == TL_AF_INET) {
		address[0] = 0;
		address[1] = 0;
		address[2] = bpf_htonl(0xffff);
		address[3] = ip4;
		return;
	}
	address[0] = ip6->in6_u.u6_addr32[0];
	address[1] = ip6->in6_u.u6_addr32[1];
	address[2] = ip6->in6_u.u6_addr32[2];
	address[3] = ip6->in6_u.u6_addr32[3];
}

/* This field exists since Linux 5.6, in kernels with CONFIG_MPTCP. */
struct tcp_sock___mptcp {
	bool is_mptcp;
} __attribute__((preserve_access_index));

/* Is the socket one path of an application's Multipath TCP socket? */
static __always_inline bool tl_is_mptcp(struct tcp_sock *tcp)
{
	struct tcp_sock___mptcp *path = (void *)tcp;

	return bpf_core_field_exists(path->is_mptcp) && path->is_mptcp;
}

#endif
