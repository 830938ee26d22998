// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * io/headers.bpf.c - group `headers`: writes `traceparent` (and `tracestate`) into outgoing plaintext
 * HTTP/1.x requests.
 *
 *   sock_ops             a thread connects: remember for which request; enrol the socket
 *   sk_msg               each send of an enrolled socket: find the header block, insert
 *
 * Where FIONREAD of a socket in the sockhash is broken, sockets of processes that call it are taken out again, here
 * when a packet is acknowledged, and by the agent: see docs/decisions/0002-fionread.md.
 *
 * Rules: parse every byte that is sent, so that a body that looks like a request is known as a
 * body; insert at the end of a header block only when all of it was seen and no traceparent stood
 * in it; commit last; undo on failure.
 */
#include "evidence/connect.h"
#include "evidence/exchange.h"
#include "evidence/traceparent.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define TL_LINEAR_MAX 16384 /* a send up to this size leaves in one piece, as it would have */
#define TL_ERRNO_EBUSY 16

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 65536);
	__type(key, __u64); /* socket cookie */
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_socks SEC(".maps");

/*
 * A header block is complete in the current send: begins the exchange. Returns how many bytes to
 * insert, 0 for none.
 */
__noinline int tl_request_out(TL_EXCHANGE)
{
	TL_TAKE_EXCHANGE(conn, text);
	__u32 bytes = TL_TRACEPARENT_BYTES, lines = 1;
	struct task_struct *task = tl_current_task();
	struct tl_parent parent;
	struct tl_http *http;
	bool found;

	if (!conn || !text)
		return 0;
	http = &conn->out;
	if (tl_pipelined(conn, text))
		return 0;
	conn->pid = bpf_get_current_pid_tgid() >> 32;
	conn->born = tl_born(TL_READ(task, group_leader));
	found = tl_find_parent(conn, &parent);
	tl_begin_client(conn, text, found ? &parent : NULL);
	conn->in.flags |= TL_HTTP_RESPONSE;
	if (conn->in.state == TL_HTTP_LOST)
		tl_http_restart(&conn->in);
	if (http->flags & TL_HTTP_HAS_TRACEPARENT)
		return 0;
	if (http->flags & TL_HTTP_MALFORMED) {
		tl_count(TL_SKIP_MALFORMED);
		return 0;
	}
	if (http->flags & TL_HTTP_HAS_TRACESTATE) {
		tl_count(TL_SKIP_OWN_TRACESTATE);
		return 0;
	}
	if (http->method == TL_METHOD_CONNECT) {
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
 * Would the socket take this much at once? When it takes only a part of a send, the kernel counts
 * our bytes with those that the application has sent already, and some would leave twice.
 */
static __always_inline bool tl_has_room(struct tcp_sock *tcp, __u32 bytes)
{
	struct sock *sk = &tcp->inet_conn.icsk_inet.sk;
	__u32 lowat = tcp->notsent_lowat;

	/* each segment costs about 1 KB beside its bytes, of which it holds 536 at least */
	if ((__s64)sk->sk_wmem_queued + 3 * bytes + 4096 > sk->sk_sndbuf)
		return false;
	return !lowat || tcp->write_seq - tcp->snd_nxt + bytes < lowat;
}

/* Undoes an insertion. What cannot be undone must not leave: the send fails instead. */
static __always_inline int tl_undo(struct sk_msg_md *msg, __u32 at, __u32 bytes)
{
	tl_count(TL_SKIP_NO_MEMORY);
	if (!bpf_msg_pop_data(msg, at, bytes, 0))
		return 0;
	tl_count(TL_FORCED_DROP);
	return -1;
}

/*
 * Inserts `bytes` of header lines at offset `at` of the send. Returns the bytes inserted, 0 when
 * the send is unchanged, -1 when it must be refused.
 */
__noinline int tl_insert(struct sk_msg_md *msg, TL_EXCHANGE, __u32 at, __u32 bytes)
{
	TL_TAKE_EXCHANGE(conn, text);
	__u32 size, end, i;
	__u8 *data, *data_end, *out;

	if (!conn || !text)
		return 0;
	if (at > TL_HEADER_BYTES_MAX || bytes < TL_TRACEPARENT_BYTES ||
	    bytes > TL_TRACEPARENT_BYTES + 14 + TL_TRACESTATE_MAX) {
		tl_count(TL_SKIP_HEADERS_TOO_LONG);
		return 0;
	}
	if (bpf_msg_push_data(msg, at, bytes, 0)) {
		tl_count(TL_SKIP_NO_MEMORY);
		return 0;
	}
	/* in one piece: three pieces would leave as three segments, one waiting for another's ACK */
	size = msg->size;
	end = size <= TL_LINEAR_MAX ? size : at + bytes;
	if (bpf_msg_pull_data(msg, 0, end, 0))
		return tl_undo(msg, at, bytes);
	data = msg->data;
	data_end = msg->data_end;
	out = data + at;
	/* one pointer for check and use: the verifier knows ranges by pointer */
	asm volatile("" : "+r"(out));
	if (out + TL_TRACEPARENT_BYTES > data_end)
		return tl_undo(msg, at, bytes);
	if (bytes == TL_TRACEPARENT_BYTES) {
		tl_write_traceparent(out, conn);
		tl_count(TL_INJECTED);
		return bytes;
	}
	if (out + TL_TRACEPARENT_BYTES + 14 > data_end)
		return tl_undo(msg, at, bytes);
	tl_write_traceparent(out, conn);
	out += TL_TRACEPARENT_BYTES;
	__builtin_memcpy(out, "tracestate: ", 12);
	out += 12;
	for (i = 0; i < TL_TRACESTATE_MAX; i++) {
		if (i >= bytes - TL_TRACEPARENT_BYTES - 14)
			break;
		if (out + 1 > data_end)
			return tl_undo(msg, at, bytes);
		*out++ = text->tracestate[i];
	}
	if (out + 2 > data_end)
		return tl_undo(msg, at, bytes);
	out[0] = '\r';
	out[1] = '\n';
	tl_count(TL_INJECTED);
	tl_count(TL_INJECTED_TRACESTATE);
	return bytes;
}

/* The bytes of a client connection cannot be followed any more: leave it alone from here on. */
static __always_inline void tl_give_up(struct tl_conn *conn)
{
	conn->out.state = TL_HTTP_LOST;
	if (conn->out.header_bytes > TL_HEADER_BYTES_MAX) {
		tl_count(TL_SKIP_HEADERS_TOO_LONG);
		return;
	}
	if (conn->flags & TL_CONN_USED) {
		tl_count(TL_SKIP_MALFORMED);
		return;
	}
	/* it is not HTTP/1: take it out */
	tl_count(TL_SKIP_NOT_HTTP);
	conn->role = TL_ROLE_OFF;
	conn->flags |= TL_CONN_OPAQUE;
}

/*
 * Compares what was parsed with what was sent since. A socket whose buffer is full takes a part of a
 * send, and the application sends the rest again; the first piece of that the kernel does not show
 * us (tcp_bpf_send_verdict keeps the verdict on the piece that failed). False: the connection cannot
 * be followed.
 */
static __always_inline bool tl_resume(struct tl_http *http, struct tcp_sock *tcp)
{
	__s32 missing = http->next_seq - tcp->write_seq;

	if (!missing)
		return true;
	if (missing > 0 ? tl_http_back(http, missing) : tl_http_ahead(http, -missing))
		return true;
	tl_count(TL_LOST_GAP);
	http->state = TL_HTTP_LOST;
	return false;
}

/*
 * Parses what comes next in the send, from `off` on. Returns how many bytes it has gone on, with
 * what was inserted; 0 when the rest says nothing, -1 when it is not HTTP, -2 when the send must not
 * leave. A function of its own, so that the verifier walks it once.
 */
__noinline int tl_send_chunk(struct sk_msg_md *msg, TL_EXCHANGE, __u32 off)
{
	TL_TAKE_EXCHANGE(conn, text);
	struct bpf_sock *sk = msg->sk;
	struct tcp_sock *tcp;
	struct tl_http *http;
	__u8 *data, *data_end;
	__u32 end = msg->size;
	__u32 skipped, n, what;
	int bytes;

	if (!conn || !text || !sk)
		return 0;
	TL_CHUNK_OF(conn, TL_OUT, chunk);
	http = &conn->out;
	if (conn->role != TL_ROLE_CLIENT || http->state >= TL_HTTP_UNTIL_CLOSE || off >= end)
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
	if (!tl_chunk_ready(conn, text, http, chunk, n, off))
		return 0;
	what = tl_http_feed(TL_GIVE_STREAM(conn, text, TL_OUT, chunk));
	skipped += chunk->pos;
	if (what == TL_FEED_MORE)
		return skipped;
	if (what == TL_FEED_MESSAGE) {
		tl_http_restart(http);
		return skipped;
	}
	if (what != TL_FEED_HEADERS)
		return -1;
	bytes = tl_request_out(TL_GIVE_EXCHANGE(conn, text));
	if (bytes > 0) {
		tcp = bpf_skc_to_tcp_sock(sk);
		if (!tcp || !tl_has_room(tcp, http->blank_at + bytes)) {
			tl_count(TL_SKIP_NO_MEMORY);
		} else {
			bytes = tl_insert(msg, TL_GIVE_EXCHANGE(conn, text), http->blank_at, bytes);
			if (bytes < 0)
				return -2;
			skipped += bytes;
		}
	}
	if (http->state == TL_HTTP_LOST)
		return 0;
	if (tl_http_frame(http, http->method))
		tl_http_restart(http);
	return skipped;
}

/*
 * As many as TL_CHUNKS_MAX of them. Returns as tl_send_chunk(). A function of its own, too: what a send
 * may hold takes more turns than the verifier would walk.
 */
__noinline int tl_send_chunks(struct sk_msg_md *msg, TL_EXCHANGE, __u32 off)
{
	TL_TAKE_EXCHANGE(conn, text);
	__u32 at = off;
	__u32 i;

	if (!conn || !text)
		return 0;
	for (i = 0; i < TL_CHUNKS_MAX && at < msg->size; i++) {
		int went = tl_send_chunk(msg, TL_GIVE_EXCHANGE(conn, text), at);

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
	struct tl_conn *conn;
	struct tl_text *text;
	struct tl_http *http;
	__u32 off = 0;
	__u32 i;

	if (!sk)
		return SK_PASS;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return SK_PASS;
	conn = TL_CONN_FIND(sk, TL_COOKIE(&tcp->inet_conn.icsk_inet.sk));
	if (!conn || conn->role != TL_ROLE_CLIENT)
		return SK_PASS;
	http = &conn->out;
	if (http->state >= TL_HTTP_UNTIL_CLOSE || !tl_resume(http, tcp))
		return SK_PASS;
	text = TL_TEXT_MAKE(sk, conn->cookie);
	if (!text) {
		tl_count(TL_FULL_STORAGE);
		/* bytes go by unseen: what follows cannot be framed */
		http->state = TL_HTTP_LOST;
		return SK_PASS;
	}
	http->flags &= ~TL_HTTP_BLANK_SEEN;

	for (i = 0; i < TL_ROUNDS_MAX && off < msg->size; i++) {
		int went = tl_send_chunks(msg, TL_GIVE_EXCHANGE(conn, text), off);

		if (!went)
			goto out;
		if (went == -2)
			return SK_DROP;
		if (went < 0)
			break;
		off += went;
	}
	if (off < msg->size)
		tl_give_up(conn);
out:
	http->next_seq = tcp->write_seq + msg->size;
	return SK_PASS;
}

static __always_inline void tl_enrol(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct tl_conn *conn = TL_CONN_FIND(sk, bpf_get_socket_cookie(ops));
	struct tl_member_of process;
	__u64 cookie;
	int error;

	if (!conn || conn->role != TL_ROLE_CLIENT)
		return;
	tl_set_addresses(conn, sk);
	/* what is sent on it does not come to sk_msg; tl_egress counts its requests */
	if (conn->flags & TL_CONN_MPTCP)
		return;
	if (ops->data_segs_out) {
		/* TCP Fast Open: the request left with the SYN, which tl_egress has seen */
		if (!(conn->flags & TL_CONN_USED))
			tl_count(TL_SKIP_NOT_ENROLLED);
		return;
	}
	conn->out.next_seq = ops->snd_nxt;
	cookie = bpf_get_socket_cookie(ops);
	process.pid = conn->pid;
	process.born = conn->born;
	if (tl_config.fionread_broken &&
	    bpf_map_update_elem(&tl_members, &cookie, &process, BPF_ANY)) {
		tl_count(TL_ENROL_FAILED);
		return;
	}
	error = bpf_sock_hash_update(ops, &tl_socks, &cookie, BPF_NOEXIST);
	if (error) {
		tl_count(error == -TL_ERRNO_EBUSY ? TL_ENROL_BUSY : TL_ENROL_FAILED);
		if (tl_config.fionread_broken)
			bpf_map_delete_elem(&tl_members, &cookie);
		return;
	}
	conn->flags |= TL_CONN_ENROLLED;
	tl_count(TL_ENROLLED);
	/* acknowledgements tell when it may be taken out again, should it not be HTTP */
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_RTT_CB_FLAG);
}

/* Was the process that the connection is of seen to call FIONREAD? */
static __always_inline bool tl_asks_fionread(const struct tl_conn *conn)
{
	__u32 *born = bpf_map_lookup_elem(&tl_fionread, &conn->pid);

	return born && *born == conn->born;
}

/*
 * Our bytes were acknowledged; the data of this packet is not in the socket yet. The first answer
 * comes no earlier than this, so a socket that leaves the sockhash here has left before its owner
 * could ask what it can read.
 */
static __always_inline void tl_acknowledged(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct tl_conn *conn = TL_CONN_FIND(sk, bpf_get_socket_cookie(ops));
	bool http = conn && conn->role == TL_ROLE_CLIENT;
	bool leaves = false;
	__u64 cookie;

	if (http && !(conn->flags & TL_CONN_USED))
		return;
	if (http && tl_config.fionread_broken) {
		leaves = conn->flags & TL_CONN_LEAVES || tl_asks_fionread(conn);
		/* its process may yet turn out to call it: look again at the next one */
		if (!leaves)
			return;
	}
	if (conn && conn->flags & TL_CONN_ENROLLED && (leaves || conn->role == TL_ROLE_OFF)) {
		cookie = bpf_get_socket_cookie(ops);
		/* from here on tl_egress reads what it sends */
		conn->flags &= ~TL_CONN_ENROLLED;
		if (!bpf_map_delete_elem(&tl_socks, &cookie))
			tl_count(leaves ? TL_EVICTED_FIONREAD : TL_EVICTED);
		if (tl_config.fionread_broken)
			bpf_map_delete_elem(&tl_members, &cookie);
	}
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_RTT_CB_FLAG);
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
