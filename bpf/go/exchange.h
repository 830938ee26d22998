/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* go/exchange.h - requests and calls of goroutines that `observe` cannot read. */
#ifndef THROUGHLINE_GO_EXCHANGE_H
#define THROUGHLINE_GO_EXCHANGE_H

#include "go/memory.h"
#include "trace/span.h"
#include "trace/begin.h"

/*
 * The key is tl_go_object_key() of the object that stands for the exchange in the program. The
 * oldest entries give way, since a process that dies ends none.
 */
struct tl_go_exchange {
	struct tl_exchange exchange;
	struct tl_endpoints
		endpoints; /* `socket` is set only where the exchange has the connection for itself */
	struct tl_text text;
	__u16 header; /* enum tl_header_flags */
	__u16 fields; /* lines of the header */
	__u16 status; /* of the answer, once it has come */
	__u16 _pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_go_exchange);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_go_exchanges SEC(".maps");

static __always_inline struct tl_go_exchange *tl_go_find(__u64 key)
{
	return bpf_map_lookup_elem(&tl_go_exchanges, &key);
}

/* The id of the exchange's span. */
static __always_inline __u64 tl_go_span(const struct tl_go_exchange *go)
{
	return tl_key(go->exchange.context.span_id);
}

#define TL_GRPC_UNKNOWN 2 /* the status code where it is not known */

static __always_inline struct tl_go_exchange *tl_go_make(__u64 key, __u8 kind)
{
	struct tl_go_exchange *go = tl_go_find(key);

	if (go && go->exchange.flags & TL_EXCHANGE_ACTIVE)
		tl_finish(&go->exchange, &go->text, &go->endpoints,
			  go->exchange.flags & TL_EXCHANGE_GRPC ? TL_GRPC_UNKNOWN : 0,
			  TL_END_CLOSED);
	tl_insert_zeros(&tl_go_exchanges, &key, BPF_ANY);
	go = tl_go_find(key);
	if (!go) {
		tl_count(TL_FULL_GO);
		return NULL;
	}
	go->exchange.kind = kind;
	go->exchange.probed = TL_GO_BEGUN;
	go->exchange.cgroup_id = bpf_get_current_cgroup_id();
	return go;
}

/* Keeps the connection of the exchange. `alone`: no other exchange uses it at the same time. */
static __always_inline void tl_go_on(struct tl_go_exchange *go, struct sock *sk, bool alone)
{
	struct in6_addr local, peer;
	__u16 family;

	if (!sk) {
		tl_count(TL_GO_NO_SOCKET);
		return;
	}
	if (alone)
		go->endpoints.socket = tl_go_cookie(sk);
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	BPF_CORE_READ_INTO(&local, sk, __sk_common.skc_v6_rcv_saddr);
	BPF_CORE_READ_INTO(&peer, sk, __sk_common.skc_v6_daddr);
	go->endpoints.local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	go->endpoints.peer_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	tl_copy_address(go->endpoints.local_addr, family,
			BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr), &local);
	tl_copy_address(go->endpoints.peer_addr, family, BPF_CORE_READ(sk, __sk_common.skc_daddr),
			&peer);
}

/* The exchange at `key` has ended: its entry is removed. */
static __always_inline void tl_go_end(struct tl_go_exchange *go, __u64 key, __u32 status, __u32 end)
{
	if (go->exchange.kind == TL_KIND_SERVER)
		tl_incoming_used(go->endpoints.socket);
	tl_finish(&go->exchange, &go->text, &go->endpoints, status, end);
	bpf_map_delete_elem(&tl_go_exchanges, &key);
}

/* The same, where there is an exchange at `key`. */
static __always_inline void tl_go_finish(__u64 key, __u32 status, __u32 end)
{
	struct tl_go_exchange *go = tl_go_find(key);

	if (go)
		tl_go_end(go, key, status, end);
}

#endif
