/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* go/serve.h - a goroutine serves a request. */
#ifndef THROUGHLINE_GO_SERVE_H
#define THROUGHLINE_GO_SERVE_H

#include "go/goroutine.h"
#include "go/header.h"

#define TL_GO_CONTEXTS_MAX 16 /* the most contexts between that of a call and that of its request */

/* By tl_go_object_key() of a request's context.Context -> key of tl_requests. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u64);
} tl_go_contexts SEC(".maps");

/* The address of a *Request's context.Context, or 0. */
static __always_inline __u64 tl_go_context(const struct tl_go_binary *binary, __u64 request)
{
	if (binary->request_ctx == TL_GO_UNKNOWN)
		return 0;
	return tl_user_word(request + binary->request_ctx + 8);
}

/*
 * The request to which the context at `context`, or one that it was made of, belongs; or 0. A
 * context of the library begins with the one that it was made of: an interface, whose second word
 * is the address.
 */
static __always_inline __u64 tl_go_context_request(__u64 context)
{
	__u64 *request, key;
	int i;

	for (i = 0; i < TL_GO_CONTEXTS_MAX && context; i++) {
		key = tl_go_object_key(context);
		request = bpf_map_lookup_elem(&tl_go_contexts, &key);
		if (request && bpf_map_lookup_elem(&tl_requests, request))
			return *request;
		context = tl_user_word(context + 8);
	}
	return 0;
}

/* The current goroutine has served the exchange at `key`. */
static __always_inline void tl_go_has_served(const struct tl_go_binary *binary, __u64 goroutine,
					     __u64 key, __u32 status)
{
	struct tl_go_exchange *go = tl_go_find(key);

	if (go)
		tl_go_end(go, key, status, TL_END_COMPLETE);
	else
		tl_go_gave_way(binary, goroutine);
}

/* Notes that the context belongs to the request `of`. */
static __always_inline void tl_go_give_context(__u64 context, __u64 of)
{
	__u64 key = tl_go_object_key(context);

	if (context)
		bpf_map_update_elem(&tl_go_contexts, &key, &of, BPF_ANY);
}

/*
 * The current goroutine begins to serve a request, whose text has been read. `context`: that of its
 * calls.
 */
static __always_inline void tl_go_takes_up(const struct tl_go_binary *binary, __u64 goroutine,
					   struct tl_go_exchange *go, __u64 context)
{
	struct tl_unit work = {};
	__u64 id = tl_unit_number(goroutine, binary->g_goid), key;

	tl_begin_server(&go->exchange, &go->text, &go->endpoints, go->header);
	go->exchange.pid = bpf_get_current_pid_tgid() >> 32;
	if (!go->exchange.request)
		return;
	tl_go_give_context(context, go->exchange.request);
	if (!id)
		return;
	key = tl_process_key(id);
	work.request = go->exchange.request;
	bpf_map_update_elem(&tl_units, &key, &work, BPF_ANY);
}

/* The current goroutine serves a request that `observe` cannot read. */
static __always_inline void tl_go_serves(const struct tl_go_binary *binary, __u64 goroutine,
					 struct tl_go_exchange *go, __u64 request)
{

	if (tl_user_word(request + binary->request_tls))
		go->exchange.flags |= TL_EXCHANGE_TLS;
	go->text.method_len =
		tl_go_string(go->text.method, TL_METHOD_MAX, request + binary->request_method);
	go->text.target_len =
		tl_go_string(go->text.target, TL_TARGET_MAX, request + binary->request_uri);
	go->text.host_len =
		tl_go_string(go->text.host, TL_HOST_MAX, request + binary->request_host);
	tl_go_headers(binary, go, tl_user_word(request + binary->request_header));
	tl_go_takes_up(binary, goroutine, go, tl_go_context(binary, request));
}

#endif
