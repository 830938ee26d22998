/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * io/offer.h - the context that a client connection sends in a TCP option, and the bytes it belongs
 * to.
 */
#ifndef THROUGHLINE_IO_OFFER_H
#define THROUGHLINE_IO_OFFER_H

#include "evidence/find.h"
#include "trace/beside.h"
#include "wire/option.h"

enum tl_offer_state {
	TL_OFFER_NONE = 0,
	TL_OFFER_ACTIVE, /* the first byte has not been acknowledged */
	TL_OFFER_DONE,
};

enum tl_offer_way {
	TL_WAY_NEVER = 0, /* this is not the client's end of the connection */
	TL_WAY_SOCK_OPS,
	TL_WAY_TC,
};

/* The context that a client connection sends. */
struct tl_offer {
	struct tl_context context;
	__u32 start_seq; /* of the first byte that the context is for */
	__u32 rcv_nxt; /* what had been received when the offer was made */
	__u8 state; /* enum tl_offer_state */
	__u8 way; /* enum tl_offer_way */
	__u8 room; /* the size of segments leaves room for the option */
	__u8 reserved; /* so does the segment that is being built */
	__u8 refused; /* the other options left no room: counted once */
	__u8 announced; /* see struct tl_announced */
	__u8 _pad[2];
};

#ifdef TL_LEGACY
/* The oldest entries give way: the end of a socket that TL_WAY_TC serves is not seen. */
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

/* The context of what is about to be sent. */
struct tl_announced {
	struct tl_context context;
	/* it comes from a tl_outgoing: the thread's own request is no evidence here */
	__u8 announced;
	__u8 _pad[7];
};

/*
 * Takes the context that was announced by the current thread, or for the socket. The thread's
 * announcement names the socket, too: the thread may send other data first, elsewhere.
 */
static __always_inline bool tl_take_outgoing(__u32 tid, __u64 socket, struct tl_announced *found)
{
	struct tl_outgoing *out = bpf_map_lookup_elem(&tl_thread_outs, &tid);

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
	found->announced = 1;
	found->context = out->context;
	return true;
}

/*
 * Finds the context of what the current thread writes to this connection. False: it is not known,
 * or the request gets a header. `announced`: contexts of this connection are announced.
 */
static __always_inline bool tl_find_context(struct tl_flow *flow, bool announced, __u64 socket,
					    struct tl_announced *found)
{
	struct tl_thread *thread;
	struct tl_parent parent;
	__u32 tid = TL_READ(tl_current_task(), pid);

	if (flow) {
		if (flow->role == TL_ROLE_SERVER)
			return false;
		/* its own options take the space, and a send may take another path */
		if (flow->flags & TL_FLOW_MPTCP)
			return false;
		/* plaintext HTTP, or not known yet to be anything else */
		if (flow->flags & TL_FLOW_ENROLLED && !(flow->flags & TL_FLOW_OPAQUE))
			return false;
	}
	if (!flow || !(flow->flags & TL_FLOW_USED)) {
		if (tl_take_outgoing(tid, socket, found))
			return true;
		if (announced)
			return false;
	}
	thread = tl_thread_now();
	if (!thread)
		return false;
	/* whether an opaque connection has carried a request before is not known */
	if (flow && !(flow->flags & TL_FLOW_USED) && tl_loop_has_gone_on(flow, thread))
		return false;
	if (tl_thread_parent(thread, tl_trust_now(), socket, &parent) >= 0)
		return false;
	if (parent.likely && !tl_likely_is_enough(tl_cgroup_of(tl_current_task())))
		return false;
	__builtin_memcpy(found->context.trace_id, parent.trace_id, 16);
	__builtin_memcpy(found->context.span_id, &parent.key, 8);
	found->context.trace_flags = parent.trace_flags;
	return true;
}

static __always_inline bool tl_acknowledges(struct tcp_sock *tcp, const struct tl_offer *offer)
{
	return (__s32)(tcp->snd_una - offer->start_seq) > 0;
}

/* Has the connection sent this context already, for the same request? */
static __always_inline bool tl_says_again(const struct tl_offer *offer, struct tcp_sock *tcp,
					  const struct tl_context *context)
{
	const __u64 *a = (const __u64 *)offer->context.trace_id;
	const __u64 *b = (const __u64 *)context->trace_id;

	if (offer->state == TL_OFFER_NONE || a[0] != b[0] || a[1] != b[1] || a[2] != b[2])
		return false;
	return offer->state == TL_OFFER_ACTIVE || offer->rcv_nxt == tcp->rcv_nxt;
}

static __always_inline void tl_offer(struct tl_offer *offer, struct tcp_sock *tcp, __u32 seq,
				     const struct tl_announced *found)
{
	offer->context = found->context;
	offer->announced = found->announced;
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

/* Writes the option in the peers' layout. Returns its length. */
static __always_inline __u32 tl_option_fill(struct tl_option *option, const struct tl_offer *offer)
{
	option->kind = TL_OPTION_KIND;
	option->len = offer->context.trace_flags & TL_FLAG_SAMPLED ? TL_OPTION_SAMPLED_BYTES :
								     TL_OPTION_BYTES;
	__builtin_memcpy(option->trace_id, offer->context.trace_id, 16);
	__builtin_memcpy(option->span_id, offer->context.span_id, 8);
	option->trace_flags = offer->context.trace_flags;
	return option->len;
}

#endif
