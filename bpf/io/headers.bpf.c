// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * io/headers.bpf.c - group `headers`: writes `traceparent` (and `tracestate`) into outgoing
 * plaintext HTTP/1.x requests, and the same into those of FastCGI.
 *
 *   sock_ops             a thread connects: remember for which request; enrol the socket
 *   sk_msg               each send of an enrolled socket: find the header block, insert
 *
 * Where FIONREAD is broken for a socket in the sockhash, the sockets of processes that call it are
 * taken out again: here when a packet is acknowledged, and by the agent. See
 * docs/decisions/0002-fionread.md.
 *
 * Rules: parse every byte that is sent, so that a body that looks like a request is known to be a
 * body. Insert at the end of a header block, only when all of it was seen and it has no
 * traceparent. Commit last; undo on failure.
 */
#include "evidence/find.h"
#include "io/enrol.h"
#include "io/fastcgi_send.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The bytes of a client connection cannot be followed any more: it is ignored from here on. */
static __always_inline void tl_give_up(struct tl_flow *flow)
{
	flow->out.state = TL_HTTP_LOST;
	if (flow->out.header_bytes > TL_HEADER_BYTES_MAX) {
		tl_count(TL_SKIP_HEADERS_TOO_LONG);
		return;
	}
	if (flow->flags & TL_FLOW_USED) {
		tl_count(TL_SKIP_MALFORMED);
		return;
	}
	/* not HTTP/1: tl_acknowledged() takes it out of the sockhash */
	tl_count(TL_SKIP_NOT_HTTP);
	flow->role = TL_ROLE_OFF;
	flow->flags |= TL_FLOW_OPAQUE;
}

/*
 * Compares what was parsed with what was sent since. When its buffer is full, a socket takes only a
 * part of a send, and the application sends the rest again. sk_msg does not see the first piece of
 * that (tcp_bpf_send_verdict keeps the verdict for the piece that failed). False: the connection
 * cannot be followed.
 */
static __always_inline bool tl_resume(struct sk_msg_md *msg, struct tl_flow *flow,
				      struct tcp_sock *tcp)
{
	__s32 missing = flow->sequence[TL_OUT].next - tcp->write_seq;
	struct tl_http *http = &flow->out;

	if (!missing)
		return true;
	if (tl_is_in_fastcgi(flow)) {
		if (tl_fastcgi_resumes(msg, flow, missing))
			return true;
	} else if (missing > 0 ? tl_http_back(http, missing) : tl_http_ahead(http, -missing))
		return true;
	tl_count(TL_LOST_GAP);
	http->state = TL_HTTP_LOST;
	return false;
}

/*
 * Parses the next chunk of the send, from `off` on. Returns how many bytes it has parsed or
 * inserted, 0 when the rest need not be parsed, -1 when it is not HTTP, -2 when the send must be
 * refused. A global function, which the verifier walks once.
 */
__noinline int tl_send_chunk(struct sk_msg_md *msg, TL_FLOW, __u32 off)
{
	TL_TAKE_FLOW(flow, text);
	struct tl_http *http;
	__u8 *data, *data_end;
	__u32 end = msg->size;
	__u32 skipped, n, what;
	int bytes;

	if (!flow || !text || !msg->sk)
		return 0;
	TL_CHUNK_OF(flow, TL_OUT, chunk);
	http = &flow->out;
	if (flow->role != TL_ROLE_CLIENT || http->state >= TL_HTTP_UNTIL_CLOSE || off >= end)
		return 0;
	skipped = tl_http_skip(http, end - off);
	tl_http_seen(http, skipped);
	off += skipped;
	if (off >= end)
		return skipped;
	n = end - off;
	if (n > TL_CHUNK)
		n = TL_CHUNK;
	if (bpf_msg_pull_data(msg, off, off + n, 0))
		return -1;
	data = msg->data;
	data_end = msg->data_end;
	if (data + n > data_end)
		return -1;
	if (bpf_probe_read_kernel(chunk->data, tl_length(n, TL_CHUNK), data))
		return -1;
	if (!tl_chunk_ready(flow, text, http, chunk, n, off))
		return 0;
	what = tl_http_feed(TL_GIVE_STREAM(flow, text, TL_OUT, chunk));
	skipped += chunk->pos;
	if (what == TL_FEED_MORE)
		return skipped;
	if (what == TL_FEED_MESSAGE) {
		tl_http_restart(http);
		return skipped;
	}
	if (what != TL_FEED_HEADERS)
		return -1;
	bytes = tl_write_context(msg, flow, text);
	if (bytes < 0)
		return -2;
	skipped += bytes;
	if (http->state == TL_HTTP_LOST)
		return 0;
	if (tl_http_frame(http, flow->exchange.method))
		tl_http_restart(http);
	return skipped;
}

/*
 * Parses up to TL_CHUNKS_MAX chunks. Returns the same as tl_send_chunk(). A global function: a send
 * may have more chunks than the verifier would walk in one loop.
 */
__noinline int tl_send_chunks(struct sk_msg_md *msg, TL_FLOW, __u32 off)
{
	TL_TAKE_FLOW(flow, text);
	__u32 at = off;
	__u32 i;

	if (!flow || !text)
		return 0;
	for (i = 0; i < TL_CHUNKS_MAX && at < msg->size; i++) {
		int went = tl_send_chunk(msg, TL_GIVE_FLOW(flow, text), at);

		if (went <= 0)
			return went;
		at += went;
	}
	return at - off;
}

SEC("sk_msg")
int tl_send(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct tcp_sock *tcp;
	struct tl_flow *flow;
	struct tl_text *text;
	struct tl_http *http;
	__u32 off = 0;
	__u32 i;

	if (!sk)
		return SK_PASS;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return SK_PASS;
	flow = TL_FLOW_FIND(sk, TL_COOKIE(&tcp->inet_conn.icsk_inet.sk));
	if (!flow || flow->role != TL_ROLE_CLIENT)
		return SK_PASS;
	http = &flow->out;
	if (http->state >= TL_HTTP_UNTIL_CLOSE || !tl_resume(msg, flow, tcp))
		return SK_PASS;
	text = TL_TEXT_MAKE(sk, flow->cookie);
	if (!text) {
		tl_count(TL_FULL_STORAGE);
		/* these bytes are sent without being parsed: what follows cannot be framed */
		http->state = TL_HTTP_LOST;
		return SK_PASS;
	}
	if (http->state == TL_HTTP_START && !(flow->flags & TL_FLOW_USED))
		tl_sends_fastcgi(msg, TL_GIVE_FLOW(flow, text));
	http->flags &= ~TL_HTTP_BLANK_SEEN;
	http->traceparent_at = TL_HTTP_NOWHERE;
	/* the send that completes the header block tells who calls */
	if (http->state < TL_HTTP_FRAMING)
		tl_work_writes();

	for (i = 0; i < TL_ROUNDS_MAX && off < msg->size; i++) {
		int went = tl_is_in_fastcgi(flow) ?
				   tl_fastcgi_sends(msg, TL_GIVE_FLOW(flow, text), off) :
				   tl_send_chunks(msg, TL_GIVE_FLOW(flow, text), off);

		if (!went)
			goto out;
		if (went == -2)
			return SK_DROP;
		if (went < 0)
			break;
		off += went;
	}
	if (off < msg->size)
		tl_give_up(flow);
out:
	flow->sequence[TL_OUT].next = tcp->write_seq + msg->size;
	return SK_PASS;
}

SEC("sockops")
int tl_sockops(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;

	if (!sk)
		return 1;
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		tl_connect(ops, sk);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		tl_enrol(ops, sk);
		break;
	case BPF_SOCK_OPS_RTT_CB:
		tl_acknowledged(ops, sk);
		break;
	}
	return 1;
}
