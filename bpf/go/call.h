/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* go/call.h - a goroutine makes a call. */
#ifndef THROUGHLINE_GO_CALL_H
#define THROUGHLINE_GO_CALL_H

#include "evidence/find.h"
#include "go/serve.h"
#include "go/writing.h"

#define TL_GO_OWN_LEAST 1 /* the fewest fields that Go adds to a header: Host, or those of HTTP/2 */
#define TL_GO_OWN_MOST \
	8 /* the most: User-Agent, Accept-Encoding, Content-Length, Connection, …, too */

/*
 * The request for which the current goroutine makes a call with this context: a key of tl_requests,
 * or 0.
 */
static __always_inline __u64 tl_go_caller(const struct tl_go_binary *binary, __u64 goroutine,
					  __u64 context, __u8 *evidence)
{
	struct tl_unit *known;
	__u64 key;

	*evidence = TL_EVIDENCE_CONTEXT;
	key = tl_go_context_request(context);
	if (key)
		return key;
	*evidence = TL_EVIDENCE_GOROUTINE;
	known = tl_go_works(binary, goroutine);
	return known ? known->request : 0;
}

/*
 * Reads the path of a URL, and its query behind a question mark. To be called before other fields
 * are read: a text that is too long overwrites the fields behind it.
 */
static __always_inline void tl_go_target(struct tl_text *text, __u64 path, __u64 query)
{
	__u32 n = tl_go_string(text->target, TL_TARGET_MAX, path), left;
	__u64 string[2] = {};

	if (!n) {
		text->target[0] = '/';
		n = 1;
	}
	text->target_len = n;
	if (n >= TL_TARGET_MAX - 1 || bpf_probe_read_user(string, sizeof(string), (void *)query) ||
	    !string[1] || string[1] > 65535 - TL_TARGET_MAX)
		return;
	text->target_len = n + 1 + string[1];
	text->target[n & (TL_TARGET_MAX - 1)] = '?';
	n++;
	left = string[1] < TL_TARGET_MAX ? string[1] : TL_TARGET_MAX;
	bpf_probe_read_user(text->target + (n & (TL_TARGET_MAX - 1)),
			    tl_length(left, TL_TARGET_MAX), (void *)string[0]);
}

/*
 * The connection sends this request next: announces its context for a TCP option (`packets`).
 * Another goroutine writes the request, on any thread.
 */
static __always_inline void tl_go_sends(struct tl_go_exchange *go)
{
	struct tl_outgoing out = { .pending = 1 };
	__u64 socket = go->endpoints.socket;

	if (!socket || go->header & TL_HEADER_HAS_TRACEPARENT)
		return;
	out.socket = socket;
	out.context = go->exchange.context;
	bpf_map_update_elem(&tl_socket_outs, &socket, &out, BPF_ANY);
}

/* The current goroutine makes a call with a context; the text of the call has been read. */
static __always_inline void tl_go_calls_with(const struct tl_go_binary *binary, __u64 goroutine,
					     struct tl_go_exchange *go, __u64 context)
{
	int refused = TL_ROOT_NO_CONTEXT;
	struct tl_parent parent;
	__u8 evidence;
	__u64 key;

	go->exchange.pid = bpf_get_current_pid_tgid() >> 32;
	key = tl_go_caller(binary, goroutine, context, &evidence);
	if (key)
		refused = tl_take_parent(key, evidence, &parent);
	if (refused < 0)
		tl_count_parent(evidence);
	else
		tl_count(refused);
	tl_begin_client(&go->exchange, &go->text, go->header, refused < 0 ? &parent : NULL);
	if (!(go->header & (TL_HEADER_HAS_TRACEPARENT | TL_HEADER_HAS_TRACESTATE)))
		tl_inherit_tracestate(&go->text, refused < 0 ? &parent : NULL);
}

/* May a context be written into the header of this call? `seen`: all of the header was read. */
static __always_inline bool tl_go_may_write(const struct tl_go_exchange *go, bool seen)
{
	__s32 fields = go->fields;

	if (go->header & TL_HEADER_HAS_TRACEPARENT)
		return false;
	if (!seen) {
		tl_count(TL_GO_WRITE_UNPROVEN);
		return false;
	}
	if (go->header & TL_HEADER_HAS_TRACESTATE) {
		tl_count(TL_SKIP_OWN_TRACESTATE);
		return false;
	}
	if (go->exchange.method == TL_METHOD_CONNECT) {
		tl_count(TL_SKIP_TUNNEL);
		return false;
	}
	/* only fields are counted; the bytes of the values are not known */
	if (tl_limits_matter() &&
	    tl_reaches(fields + TL_GO_OWN_LEAST, fields + TL_GO_OWN_MOST + 2, TL_LIMIT_FIELDS)) {
		tl_count(TL_SKIP_NEAR_LIMIT);
		return false;
	}
	return true;
}

/*
 * The current goroutine is about to write the header of a call: keeps `writing`. NULL: nothing is
 * to be written into it.
 */
static __always_inline void tl_go_writes(const struct tl_go_binary *binary, __u64 goroutine,
					 const struct tl_go_writing *writing)
{
	__u64 id = tl_unit_number(goroutine, binary->g_goid), key = tl_process_key(id);

	if (writing && id)
		bpf_map_update_elem(&tl_go_writers, &key, writing, BPF_ANY);
	else
		bpf_map_delete_elem(&tl_go_writers, &key);
}

/*
 * The current goroutine makes a call that `observe` cannot read. True: all of its header was read.
 */
static __always_inline bool tl_go_calls_on(const struct tl_go_binary *binary, __u64 goroutine,
					   struct tl_go_exchange *go, __u64 request)
{
	__u64 url = tl_user_word(request + binary->request_url);
	bool seen;

	tl_go_target(&go->text, url + binary->url_path, url + binary->url_raw_query);
	go->text.method_len =
		tl_go_string(go->text.method, TL_METHOD_MAX, request + binary->request_method);
	if (!go->text.method_len) {
		__builtin_memcpy(go->text.method, "GET", 3);
		go->text.method_len = 3;
	}
	go->text.host_len =
		tl_go_string(go->text.host, TL_HOST_MAX, request + binary->request_host);
	if (!go->text.host_len)
		go->text.host_len =
			tl_go_string(go->text.host, TL_HOST_MAX, url + binary->url_host);
	seen = tl_go_headers(binary, go, tl_user_word(request + binary->request_header));
	tl_go_calls_with(binary, goroutine, go, tl_go_context(binary, request));
	return seen;
}

#endif
