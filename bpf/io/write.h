/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* io/write.h - a call begins in the current send, and its context is written into it. */
#ifndef THROUGHLINE_IO_WRITE_H
#define THROUGHLINE_IO_WRITE_H

#include "evidence/find.h"
#include "io/insert.h"
#include "trace/http1.h"

/*
 * A header block is complete in the current send: begins the exchange. Returns how many bytes to
 * insert, 0 for none, -1 where its traceparent is to be updated.
 */
__noinline int tl_request_out(TL_FLOW)
{
	TL_TAKE_FLOW(flow, text);
	__u32 bytes = TL_TRACEPARENT_BYTES, lines = 1;
	struct tl_parent parent;
	struct tl_http *http;
	bool found;

	if (!flow || !text)
		return 0;
	http = &flow->out;
	if (tl_pipelined(flow, text))
		return 0;
	flow->pid = bpf_get_current_pid_tgid() >> 32;
	flow->born = tl_process_born();
	/* not again, by a later send outside of the sockhash */
	flow->flags |= TL_FLOW_ASKED;
	found = tl_find_parent(flow, &parent);
	tl_flow_calls(flow, text, found ? &parent : NULL);
	flow->in.flags |= TL_HTTP_RESPONSE;
	if (flow->in.state == TL_HTTP_LOST)
		tl_http_restart(&flow->in);
	if (http->flags & TL_HEADER_HAS_TRACEPARENT)
		return flow->exchange.flags & TL_EXCHANGE_PASSED_ON ? -1 : 0;
	if (http->flags & TL_HTTP_MALFORMED) {
		tl_count(TL_SKIP_MALFORMED);
		return 0;
	}
	if (http->flags & TL_HEADER_HAS_TRACESTATE) {
		tl_count(TL_SKIP_OWN_TRACESTATE);
		return 0;
	}
	if (flow->exchange.method == TL_METHOD_CONNECT) {
		/* a tunnel through a proxy: the request ends at the proxy */
		tl_count(TL_SKIP_TUNNEL);
		return 0;
	}
	if (http->header_bytes > TL_HEADER_BYTES_MAX) {
		tl_count(TL_SKIP_HEADERS_TOO_LONG);
		return 0;
	}
	if (!(http->flags & TL_HTTP_BLANK_SEEN)) {
		tl_count(TL_SKIP_SPLIT_BLANK);
		return 0;
	}
	tl_inherit_tracestate(text, found ? &parent : NULL);
	if (tl_is_in_fastcgi(flow))
		return tl_record_bytes(http, text);
	if (text->tracestate_len && text->tracestate_len <= TL_TRACESTATE_MAX) {
		bytes += 14 + text->tracestate_len;
		lines++;
	}
	if (tl_near_limit(http, text, bytes, lines)) {
		tl_count(TL_SKIP_NEAR_LIMIT);
		return 0;
	}
	return bytes;
}

/*
 * The same, and writes the context. Returns how many bytes it has inserted, -1 when the send must be
 * refused.
 */
static __always_inline int tl_write_context(struct sk_msg_md *msg, struct tl_flow *flow,
					    struct tl_text *text)
{
	int bytes = tl_request_out(TL_GIVE_FLOW(flow, text));
	struct bpf_sock *sk = msg->sk;
	struct tcp_sock *tcp;

	if (!bytes)
		return 0;
	tcp = sk ? bpf_skc_to_tcp_sock(sk) : NULL;
	if (!tcp || !tl_has_room(tcp, flow->out.blank_at + (bytes > 0 ? bytes : 0))) {
		tl_count(TL_SKIP_NO_MEMORY);
		return 0;
	}
	if (bytes > 0)
		return tl_insert(msg, TL_GIVE_FLOW(flow, text), flow->out.blank_at, bytes);
	tl_update_header(msg, TL_GIVE_FLOW(flow, text));
	return 0;
}

#endif
