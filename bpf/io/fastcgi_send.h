/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * io/fastcgi_send.h - FastCGI in what is sent: finds the end of the parameters, and writes the context
 * in front of it.
 */
#ifndef THROUGHLINE_IO_FASTCGI_SEND_H
#define THROUGHLINE_IO_FASTCGI_SEND_H

#include "io/write.h"

#ifdef TL_LEGACY
static __always_inline void tl_sends_fastcgi(struct sk_msg_md *msg, __u64 cookie)
{
}

static __always_inline bool tl_fastcgi_resumes(struct sk_msg_md *msg, struct tl_flow *flow,
					       __s32 missing)
{
	return false;
}

static __always_inline int tl_fastcgi_sends(struct sk_msg_md *msg, __u64 cookie, __u32 off)
{
	return 0;
}
#else
#include "io/fastcgi.h"

/* Does the connection begin with a request of FastCGI, in this send? */
__noinline int tl_sends_fastcgi(struct sk_msg_md *msg, struct tl_flow *flow, struct tl_text *text)
{
	__u8 start[TL_FASTCGI_BEGIN_BYTES];
	__u8 *data, *data_end;

	asm volatile("" ::"r"(text));
	if (!flow || msg->size < sizeof(start) || bpf_msg_pull_data(msg, 0, sizeof(start), 0))
		return 0;
	data = msg->data;
	data_end = msg->data_end;
	if (data + sizeof(start) > data_end || bpf_probe_read_kernel(start, sizeof(start), data) ||
	    !tl_is_fastcgi(start))
		return 0;
	if (!msg->sk || !tl_fastcgi_make(msg->sk))
		return 0;
	flow->protocol = TL_PROTOCOL_FASTCGI;
	return 0;
}

/* The same as tl_resume(). */
__noinline int tl_fastcgi_resumes(struct sk_msg_md *msg, struct tl_flow *flow, __s32 missing)
{
	struct tl_fastcgi *fastcgi = msg->sk ? tl_fastcgi_find(msg->sk, TL_OUT) : NULL;

	if (!flow || !fastcgi)
		return false;
	return missing > 0 ? tl_fastcgi_back(fastcgi, missing) :
			     tl_fastcgi_ahead(&flow->out, fastcgi, -missing);
}

/* The same as tl_send_chunk(), but returns tl_went(). */
__noinline int tl_fastcgi_send(struct sk_msg_md *msg, struct tl_flow *flow, struct tl_text *text,
			       __u32 off)
{
	struct bpf_sock *sk = msg->sk;
	struct tl_chunk chunk = {};
	struct tl_fastcgi *fastcgi;
	__u8 *data, *data_end;
	__u32 end = msg->size;
	__u32 skipped, n;
	int what;

	if (!flow || !text || !sk)
		return 0;
	if (flow->role != TL_ROLE_CLIENT || flow->out.state >= TL_HTTP_UNTIL_CLOSE || off >= end)
		return 0;
	fastcgi = tl_fastcgi_find(sk, TL_OUT);
	if (!fastcgi)
		return 0;
	skipped = tl_fastcgi_skip(fastcgi, end - off);
	off += skipped;
	if (off >= end)
		return tl_went(skipped, TL_FEED_MORE);
	n = end - off;
	if (n > TL_CHUNK)
		n = TL_CHUNK;
	if (bpf_msg_pull_data(msg, off, off + n, 0))
		return -1;
	data = msg->data;
	data_end = msg->data_end;
	if (data + n > data_end)
		return -1;
	if (bpf_probe_read_kernel(chunk.data, tl_length(n, TL_CHUNK), data))
		return -1;
	chunk.len = n;
	chunk.base = off;
	what = tl_fastcgi_feed(&flow->out, text, &chunk, fastcgi);
	if (what == TL_FEED_LOST)
		return -1;
	return tl_went(skipped + chunk.pos, what);
}

static __always_inline void tl_fastcgi_called(struct tl_flow *flow, struct tl_text *text)
{
}

/*
 * Acts on what was found in the send. Returns how many bytes it has inserted, -1 when the send must be
 * refused.
 */
__noinline int tl_fastcgi_sent(struct sk_msg_md *msg, struct tl_flow *flow, struct tl_text *text,
			       __u32 what)
{
	struct tl_http *http;
	int bytes = 0;

	if (!flow || !text)
		return 0;
	http = &flow->out;
	if (what == TL_FEED_HEADERS && http->state == TL_HTTP_METHOD && text->method_len) {
		bytes = tl_write_context(msg, flow, text);
		if (http->state == TL_HTTP_LOST)
			return bytes;
	}
	tl_fastcgi_event(flow, text, http, what, tl_fastcgi_called);
	return bytes;
}

/* The same as tl_send_chunks(). */
__noinline int tl_fastcgi_sends(struct sk_msg_md *msg, struct tl_flow *flow, struct tl_text *text,
				__u32 off)
{
	__u32 at = off;
	__u32 i;

	if (!flow || !text)
		return 0;
	for (i = 0; i < TL_CHUNKS_MAX && at < msg->size; i++) {
		int went = tl_fastcgi_send(msg, flow, text, at);
		int bytes;

		if (went <= 0)
			return went;
		at += went & TL_WENT_MAX;
		if (went >> TL_WENT_BITS == TL_FEED_MORE)
			continue;
		bytes = tl_fastcgi_sent(msg, flow, text, went >> TL_WENT_BITS);
		if (bytes < 0)
			return -2;
		at += bytes;
	}
	return at - off;
}
#endif

#endif
