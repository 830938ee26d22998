/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * tls/connection.h - what is kept of a TLS connection: the flow inside of it, whose socket may not
 * be known.
 */
#ifndef THROUGHLINE_TLS_CONNECTION_H
#define THROUGHLINE_TLS_CONNECTION_H

#include "tls/maps.h"
#include "core/process.h"
#include "trace/flow.h"

#ifndef TL_LEGACY
struct tl_tls {
	struct tl_flow flow;
	struct tl_text text;
};

#define TL_TLS_TEXT(flow) (&((struct tl_tls *)(flow))->text)
#else
#define TL_TLS_TEXT(flow) TL_TEXT_FIND(, (flow)->cookie)
#endif

/* The key of the TLS connection whose SSL is at this address, which is a multiple of 16. */
static __always_inline __u64 tl_tls_key(__u64 ssl)
{
	return tl_process_key(ssl >> 4);
}

static __always_inline struct tl_flow *tl_tls_find(__u64 key)
{
#ifdef TL_LEGACY
	return TL_FLOW_FIND(, key);
#else
	return bpf_map_lookup_elem(&tl_tls, &key);
#endif
}

static __always_inline struct tl_flow *tl_tls_make(__u64 key)
{
	struct tl_flow *flow = tl_tls_find(key);

	if (flow)
		return flow;
#ifdef TL_LEGACY
	flow = TL_FLOW_MAKE(, key);
	if (flow && !TL_TEXT_MAKE(, key))
		flow = NULL;
#else
	tl_insert_zeros(&tl_tls, &key, BPF_NOEXIST);
	flow = tl_tls_find(key);
#endif
	if (!flow) {
		tl_count(TL_FULL_TLS);
		return NULL;
	}
	/*
	 * until its socket is known, the connection may be one that was just made: see
	 * tl_loop_has_gone_on()
	 */
	flow->flags = TL_FLOW_INSIDE | TL_FLOW_CONNECTED;
	flow->exchange.flags = TL_EXCHANGE_TLS;
	flow->exchange.probed = TL_TLS_BEGUN;
	flow->cgroup_id = bpf_get_current_cgroup_id();
	flow->pid = bpf_get_current_pid_tgid() >> 32;
	return flow;
}

static __always_inline void tl_tls_forget(__u64 key)
{
#ifdef TL_LEGACY
	bpf_map_delete_elem(&TL_FLOWS, &key);
	bpf_map_delete_elem(&TL_TEXTS, &key);
#else
	bpf_map_delete_elem(&tl_tls, &key);
#endif
}

/* The cookie of a socket that a thread reads. */
static __always_inline __u64 tl_tls_cookie(struct sock *sk)
{
#ifdef TL_LEGACY
	/* before Linux 5.12 tracing programs cannot call bpf_get_socket_cookie() */
	return TL_COOKIE(sk);
#else
	return bpf_get_socket_cookie(sk);
#endif
}

/* The flow of the socket itself, which `observe` keeps, or NULL. */
static __always_inline struct tl_flow *tl_tls_socket_flow(struct sock *sk, __u64 socket)
{
#ifdef TL_LEGACY
	return bpf_map_lookup_elem(&tl_flows, &socket);
#else
	return TL_FLOW_FIND(sk, socket);
#endif
}

#endif
