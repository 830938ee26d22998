/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* trace/fastcgi.h - the exchange of a flow of FastCGI: what the parser finds begins and ends it. */
#ifndef THROUGHLINE_TRACE_FASTCGI_H
#define THROUGHLINE_TRACE_FASTCGI_H

#include "proto/fastcgi_parse.h"
#include "trace/http1.h"

/* A request begins: its parameters follow. */
static __always_inline void tl_fastcgi_opens(struct tl_flow *flow, struct tl_text *text,
					     struct tl_http *http)
{
	/* another one is in the middle of its parameters */
	if (http->state == TL_HTTP_METHOD) {
		tl_count(TL_SKIP_PIPELINED);
		http->state = TL_HTTP_LOST;
		return;
	}
	if (tl_pipelined(flow, text))
		return;
	http->state = TL_HTTP_METHOD;
	http->minor = 1;
	http->members = 0;
	text->method_len = 0;
	text->target_len = 0;
	text->host_len = 0;
	text->traceparent_len = 0;
	text->tracestate_len = 0;
}

/*
 * Acts on what the parser has found in the direction `http` of the flow. `call` begins the exchange of
 * a call, or of what a server has received.
 */
static __always_inline void tl_fastcgi_event(struct tl_flow *flow, struct tl_text *text,
					     struct tl_http *http, __u32 what,
					     void (*call)(struct tl_flow *, struct tl_text *))
{
	switch (what) {
	case TL_FEED_BEGIN:
		tl_fastcgi_opens(flow, text, http);
		return;
	case TL_FEED_HEADERS:
		if (http->state != TL_HTTP_METHOD)
			return;
		if (!text->method_len) {
			tl_count(TL_SKIP_MALFORMED);
			http->state = TL_HTTP_LOST;
			return;
		}
		call(flow, text);
		if (flow->role == TL_ROLE_CLIENT) {
			flow->in.flags |= TL_HTTP_RESPONSE;
			if (flow->in.state == TL_HTTP_LOST)
				tl_http_restart(&flow->in);
		} else {
			flow->out.flags |= TL_HTTP_RESPONSE;
			if (flow->out.state == TL_HTTP_LOST)
				tl_http_restart(&flow->out);
		}
		http->state = TL_HTTP_BODY;
		return;
	case TL_FEED_MESSAGE:
		if (http->state == TL_HTTP_BODY || http->flags & TL_HTTP_RESPONSE)
			tl_message_ends(flow, text, http);
		return;
	}
}

#endif
