// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * io/observe.bpf.c - group `observe`: HTTP/1.x server and client spans from what the sockets of a
 * cgroup receive and send, and which thread works for which request.
 *
 *   cgroup_skb/ingress   requests that come in, responses to our calls
 *   cgroup_skb/egress    responses that go out, requests of sockets that sk_msg does not see
 *   tcp_rcv_space_adjust a thread has read a socket
 *   inet_sock_set_state  a connection ends
 *   sys_enter            a thread waits for several descriptors: the tick of its event loop ends
 *   (BPF_PROG_RUN)       the agent ends requests whose end nobody has seen
 */
#include "evidence/exchange.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define TL_SOCK_STREAM 1
#define TL_WINDOW_GROWS (1 << 20) /* bytes that a window may grow by while we look */

/*
 * Is the socket in the sockhash? Where FIONREAD is broken, user space takes sockets out, which cannot change what
 * we keep of them: that one is no member any more tells.
 */
static __always_inline bool tl_is_enrolled(struct tl_conn *conn)
{
	__u64 socket = conn->socket;

	if (!(conn->flags & TL_CONN_ENROLLED))
		return false;
	if (!tl_config.fionread_broken || bpf_map_lookup_elem(&tl_members, &socket))
		return true;
	conn->flags &= ~TL_CONN_ENROLLED;
	/* what it has sent until now sk_msg has parsed, up to next_seq */
	conn->out.flags |= TL_HTTP_SYNCED;
	return false;
}

/* A TCP segment with payload. */
struct tl_segment {
	__u32 off; /* of the payload in the packet */
	__u32 len; /* of the payload */
	__u32 seq; /* of its first byte */
	__u32 ip_len;
};

static __always_inline bool tl_looks_like_request(struct __sk_buff *skb,
						  const struct tl_segment *segment)
{
	__u32 n = segment->len < 4 ? segment->len : 4;
	__u8 start[4] = {};

	if (n < 1 || bpf_skb_load_bytes(skb, segment->off, start, tl_length(n, 4)))
		return false;
	return tl_begins_request(start, n);
}

/* Does a connection begin here: with a request, or with the PROXY protocol in front of one? */
static __always_inline bool tl_looks_like_start(struct __sk_buff *skb,
						const struct tl_segment *segment)
{
	__u32 n = segment->len < 16 ? segment->len : 16;
	__u8 start[16] = {};

	if (n < 1 || bpf_skb_load_bytes(skb, segment->off, start, tl_length(n, 16)))
		return false;
	return tl_begins_request(start, n < 4 ? n : 4) || tl_begins_proxy(start, n);
}

/* A request of a socket that sk_msg does not see: its thread is not known here. */
static __always_inline void tl_call_of_nobody(struct tl_conn *conn, struct tl_text *text)
{
	tl_count(conn->flags & TL_CONN_MPTCP ? TL_SKIP_MPTCP : TL_SKIP_NOT_ENROLLED);
	tl_begin_client(conn, text, NULL);
}

/*
 * The parser stopped in a direction of a packet: acts on it. Its own function, so that the
 * verifier walks it once and not for each turn of the loop that calls it.
 */
__noinline int tl_packet_event(TL_EXCHANGE, __u32 direction, __u32 what)
{
	TL_TAKE_EXCHANGE(conn, text);

	if (conn && text)
		tl_stream_event(conn, text, direction, what, tl_call_of_nobody);
	return 0;
}

/*
 * Parses what comes next in the bytes `range` of the packet (the first in the upper half, the one
 * behind the last in the lower). Returns tl_went(), 0 when the rest says nothing, -1 when it is not HTTP. A
 * function of its own, as tl_packet_event().
 */
__noinline int tl_packet_chunk(struct __sk_buff *skb, TL_EXCHANGE, __u64 range, __u32 direction)
{
	TL_TAKE_EXCHANGE(conn, text);
	struct tl_http *http;
	__u32 off = range >> 32;
	__u32 end = range;
	__u32 skipped, n;
	int what;

	if (!conn || !text)
		return 0;
	TL_CHUNK_OF(conn, direction, chunk);
	http = tl_http_of(conn, direction);
	if (conn->role == TL_ROLE_OFF || http->state >= TL_HTTP_UNTIL_CLOSE)
		return 0;
	skipped = tl_http_skip(http, end - off);
	off += skipped;
	if (off >= end)
		return skipped;
	n = end - off;
	if (n > TL_CHUNK)
		n = TL_CHUNK;
	if (bpf_skb_load_bytes(skb, off, chunk->data, tl_length(n, TL_CHUNK))) {
		tl_count(TL_LOST_GAP);
		http->state = TL_HTTP_LOST;
		return 0;
	}
	if (!tl_chunk_ready(conn, text, http, chunk, n, 0))
		return 0;
	what = tl_http_feed(TL_GIVE_STREAM(conn, text, direction, chunk));
	if (what != TL_FEED_MORE && what != TL_FEED_HEADERS && what != TL_FEED_MESSAGE)
		return -1;
	return tl_went(skipped + chunk->pos, what);
}

/*
 * As many as TL_CHUNKS_MAX of them, and what they come to. Returns how many bytes it has gone on, 0 when the rest
 * says nothing, -1 when it is not HTTP. A function of its own, too: what a packet may hold takes more turns than
 * the verifier would walk.
 */
__noinline int tl_packet_chunks(struct __sk_buff *skb, TL_EXCHANGE, __u64 range, __u32 direction)
{
	TL_TAKE_EXCHANGE(conn, text);
	__u64 off = range >> 32;
	__u32 end = range;
	__u32 i;

	if (!conn || !text)
		return 0;
	for (i = 0; i < TL_CHUNKS_MAX && off < end; i++) {
		int went = tl_packet_chunk(skb, TL_GIVE_EXCHANGE(conn, text), off << 32 | end,
					   direction);

		if (went <= 0)
			return went;
		off += went & TL_WENT_MAX;
		if (went > (int)TL_WENT_MAX)
			tl_packet_event(TL_GIVE_EXCHANGE(conn, text), direction,
					went >> TL_WENT_BITS);
	}
	return off - (range >> 32);
}

/* The bytes of a direction are not HTTP. */
static __always_inline void tl_not_http(struct tl_conn *conn, struct tl_text *text,
					struct tl_http *http)
{
	http->state = TL_HTTP_LOST;
	if (conn->flags & TL_CONN_USED) {
		tl_count(TL_SKIP_MALFORMED);
		return;
	}
	if (conn->role == TL_ROLE_SERVER) {
		tl_count(TL_LOST_NOT_HTTP);
	} else if (!(conn->flags & TL_CONN_OPAQUE)) {
		tl_count(TL_SKIP_NOT_HTTP);
		conn->flags |= TL_CONN_OPAQUE;
	}
	/* else it may be the middle of a connection older than the agent: a request may follow */
	if (!tl_is_guess(conn) || tl_is_http2(text))
		conn->role = TL_ROLE_OFF;
	else
		tl_guess_again(conn);
}

/* The segment goes by unread: a direction that is not followed stays in step for what comes later. */
static __always_inline void tl_pass(struct tl_http *http, const struct tl_segment *segment)
{
	__u32 next = segment->seq + segment->len;

	if ((__s32)(next - http->next_seq) > 0)
		http->next_seq = next;
}

/* Parses the payload of a segment. */
static __always_inline void tl_stream(struct __sk_buff *skb, struct tl_conn *conn,
				      struct tl_text *text, const struct tl_segment *segment,
				      __u32 direction)
{
	struct tl_http *http = tl_http_of(conn, direction);
	__u64 off = segment->off;
	__u64 end = segment->off + segment->len;
	__s32 ahead;
	__u32 i;

	if (!(http->flags & TL_HTTP_SYNCED)) {
		http->flags |= TL_HTTP_SYNCED;
		http->next_seq = segment->seq;
	}
	ahead = segment->seq - http->next_seq;
	if (ahead < 0) {
		/* sent again: only what lies behind the known part is new */
		if ((__u32)-ahead >= segment->len)
			return;
		off += (__u32)-ahead;
	} else if (ahead > 0) {
		if ((http->state == TL_HTTP_BODY || http->state == TL_HTTP_CHUNK_DATA) &&
		    http->remain > (__u32)ahead) {
			http->remain -= ahead;
		} else if (http->state < TL_HTTP_UNTIL_CLOSE) {
			tl_count(TL_LOST_GAP);
			http->state = TL_HTTP_LOST;
		}
	}
	http->next_seq = segment->seq + segment->len;

	for (i = 0; i < TL_ROUNDS_MAX && off < end; i++) {
		int went = tl_packet_chunks(skb, TL_GIVE_EXCHANGE(conn, text), off << 32 | end,
					    direction);

		if (!went)
			return;
		if (went < 0)
			break;
		off += (__u32)went;
	}
	if (off < end)
		tl_not_http(conn, text, http);
}

/* Finds the TCP payload of a packet that starts at its IP header. Returns its length. */
static __always_inline __u32 tl_payload(struct __sk_buff *skb, struct tl_segment *segment)
{
	void *data = (void *)(long)skb->data;
	void *data_end = (void *)(long)skb->data_end;
	struct tcphdr *tcp;
	__u32 ip_len, total;

	if (skb->protocol == bpf_htons(0x0800)) {
		struct iphdr *ip = data;

		if ((void *)(ip + 1) > data_end || ip->protocol != IPPROTO_TCP)
			return 0;
		ip_len = ip->ihl * 4;
	} else if (skb->protocol == bpf_htons(0x86dd)) {
		struct ipv6hdr *ip = data;

		if ((void *)(ip + 1) > data_end || ip->nexthdr != IPPROTO_TCP)
			return 0;
		ip_len = sizeof(*ip);
	} else {
		return 0;
	}
	total = skb->len;
	tcp = data + ip_len;
	if ((void *)(tcp + 1) > data_end)
		return 0;
	segment->ip_len = ip_len;
	segment->seq = bpf_ntohl(tcp->seq) + tcp->syn; /* TCP Fast Open: it counts as a byte */
	segment->off = ip_len + tcp->doff * 4;
	if (segment->off >= total)
		return 0;
	segment->len = total - segment->off;
	return segment->len;
}

static __always_inline struct tl_conn *tl_new_conn(struct __sk_buff *skb, struct bpf_sock *sk,
						   const struct tl_segment *segment, __u8 role)
{
	struct tl_conn *conn;
	__u64 cgroup_id;

	if (!tl_looks_like_start(skb, segment))
		return NULL;
	cgroup_id = bpf_skb_cgroup_id(skb);
	if (!tl_traced(cgroup_id))
		return NULL;
	conn = TL_CONN_MAKE(sk, bpf_get_socket_cookie(skb));
	if (!conn) {
		tl_count(TL_FULL_STORAGE);
		return NULL;
	}
	conn->socket = bpf_get_socket_cookie(skb);
	conn->cgroup_id = cgroup_id;
	conn->role = role;
	sk = bpf_sk_fullsock(sk);
	if (sk)
		tl_set_addresses(conn, sk);
	return conn;
}

/* The sender of a packet that starts at its IP header, as IPv4-mapped address. */
static __always_inline int tl_sender_address(struct __sk_buff *skb, __u8 *out)
{
	__u32 *address = (__u32 *)out;

	if (skb->protocol != bpf_htons(0x0800))
		return bpf_skb_load_bytes(skb, 8, out, 16);
	address[2] = bpf_htonl(0xffff);
	return bpf_skb_load_bytes(skb, 12, &address[3], 4);
}

#ifndef TL_LEGACY
/*
 * The hook runs for the listener when a segment makes its connection, since the connection's own socket
 * does not exist yet, and it runs before TCP has looked at the segment: it may be anybody's. TCP makes
 * the connection at once, on this processor, or not at all. So each processor keeps the last one only, and
 * nothing of it goes into any other map before there is a connection.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tl_early);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_early SEC(".maps");

/* From whom to whom the segment is, and its numbers. */
static __always_inline int tl_early_ends(struct __sk_buff *skb, const struct tl_segment *segment,
					 struct tl_early *early)
{
	__u32 *local = (__u32 *)early->local_addr;
	struct tcphdr tcp;

	if (tl_sender_address(skb, early->peer_addr) ||
	    bpf_skb_load_bytes(skb, segment->ip_len, &tcp, sizeof(tcp)))
		return -1;
	early->local_port = bpf_ntohs(tcp.dest);
	early->peer_port = bpf_ntohs(tcp.source);
	early->seq = segment->seq;
	early->acknowledges = bpf_ntohl(tcp.ack_seq);
	if (skb->protocol != bpf_htons(0x0800))
		return bpf_skb_load_bytes(skb, 24, local, 16);
	local[2] = bpf_htonl(0xffff);
	return bpf_skb_load_bytes(skb, 16, &local[3], 4);
}

/* The segment came to a listener: parses it, for the connection that TCP may make of it. */
static __always_inline void tl_early_packet(struct __sk_buff *skb, struct tl_segment *segment)
{
	struct tl_early *early;
	const void *nothing;
	__u32 zero = 0;
	__u64 cgroup_id;

	early = bpf_map_lookup_elem(&tl_early, &zero);
	nothing = bpf_map_lookup_elem(&tl_nothing, &zero);
	if (!early || !nothing)
		return;
	early->waits = 0;
	if (!tl_looks_like_start(skb, segment))
		return;
	cgroup_id = bpf_skb_cgroup_id(skb);
	if (!tl_traced(cgroup_id))
		return;
	bpf_map_update_elem(&tl_early, &zero, nothing, BPF_ANY);
	if (tl_early_ends(skb, segment, early))
		return;
	early->conn.cgroup_id = cgroup_id;
	early->conn.role = TL_ROLE_SERVER;
	early->conn.flags = TL_CONN_EARLY;
	__builtin_memcpy(early->conn.local_addr, early->local_addr, 16);
	__builtin_memcpy(early->conn.peer_addr, early->peer_addr, 16);
	early->conn.local_port = early->local_port;
	early->conn.peer_port = early->peer_port;
	tl_count(TL_EARLY_READ);
	tl_stream(skb, &early->conn, &early->text, segment, TL_IN);
	early->waits = 1;
}
#else
/* There is no cookie yet to keep it by: the request is not seen. */
static __always_inline void tl_early_packet(struct __sk_buff *skb, struct tl_segment *segment)
{
	if (tl_looks_like_start(skb, segment) && tl_traced(bpf_skb_cgroup_id(skb)))
		tl_count(TL_LOST_EARLY);
}
#endif

/* Where the option of our kind starts among `len` bytes of TCP options, 0: there is none. */
static __always_inline __u32 tl_find_option(const __u8 *options, __u32 len)
{
	__u32 pos = 0;
	__u32 i, size;

	for (i = 0; i < 40; i++) {
		if (pos + 1 >= len || !options[pos & 63])
			return 0;
		if (options[pos & 63] == TL_OPTION_KIND)
			return pos + 1;
		size = options[pos & 63] == 1 ? 1 : options[(pos + 1) & 63];
		if (!size)
			return 0;
		pos += size;
	}
	return 0;
}

static __always_inline void tl_option_keep(struct tl_incoming *incoming,
					   const struct tl_option *option)
{
	__builtin_memcpy(incoming->trace_id, option->trace_id, 16);
	__builtin_memcpy(incoming->span_id, option->span_id, 8);
	incoming->trace_flags = option->len == TL_OPTION_BYTES ?
					option->trace_flags & (TL_FLAG_SAMPLED | TL_FLAG_RANDOM) :
					TL_FLAG_SAMPLED;
	incoming->fresh = 1;
}

/*
 * Reads the context that a segment carries, if it does. `lengths`: of the IP header (upper half) and
 * of the TCP header. A function of its own, so that the verifier walks it once.
 */
__noinline int tl_option_in(struct __sk_buff *skb, __u64 lengths)
{
	const struct tl_settings *settings = tl_settings_now();
	struct tl_incoming *incoming, fresh = {};
	struct bpf_sock *sk = skb->sk;
	struct bpf_tcp_sock *tcp;
	struct tl_option *option;
#ifndef TL_LEGACY
	struct tl_early *early;
	__u32 zero = 0;
#endif
	__u8 options[64 + sizeof(*option)] = {};
	__u8 address[16] = {};
	__u32 ip_len = lengths >> 32;
	__u32 tcp_len = lengths;
	__u32 len, pos, seq, ahead;
	__u64 socket;

	if (!settings || !settings->packets || !sk || tcp_len < 20 + TL_OPTION_SPACE)
		return 0;
	len = tcp_len - 20;
	if (len > 40 || bpf_skb_load_bytes(skb, ip_len + 20, options, tl_length(len, 64)))
		return 0;
	pos = tl_find_option(options, len);
	if (!pos)
		return 0;
	option = (struct tl_option *)&options[(pos - 1) & 63];
	if ((option->len != TL_OPTION_SAMPLED_BYTES && option->len != TL_OPTION_BYTES) ||
	    pos - 1 + option->len > len || !tl_any(option->trace_id, 16) ||
	    !tl_any(option->span_id, 8)) {
		tl_count(TL_OPTION_MALFORMED);
		return 0;
	}
	if (!tl_traced(bpf_skb_cgroup_id(skb)))
		return 0;
	if (tl_sender_address(skb, address) || !tl_is_peer(address)) {
		tl_count(TL_OPTION_STRANGER);
		return 0;
	}
#ifndef TL_LEGACY
	if (sk->state == BPF_TCP_LISTEN) {
		early = bpf_map_lookup_elem(&tl_early, &zero);
		if (early && early->waits)
			tl_option_keep(&early->incoming, option);
		else
			tl_count(TL_OPTION_STALE);
		return 0;
	}
#endif
	tcp = sk->state == BPF_TCP_LISTEN ? NULL : bpf_tcp_sock(sk);
	if (!tcp || bpf_skb_load_bytes(skb, ip_len + 4, &seq, 4)) {
		tl_count(TL_OPTION_STALE);
		return 0;
	}
	/* the segment was not received before, and may be */
	ahead = bpf_ntohl(seq) + (skb->len - ip_len - tcp_len) - tcp->rcv_nxt;
	if ((__s32)ahead <= 0 || ahead > TL_OPTION_WINDOW) {
		tl_count(TL_OPTION_STALE);
		return 0;
	}
	socket = bpf_get_socket_cookie(skb);
	incoming = bpf_map_lookup_elem(&tl_incoming, &socket);
	if (!incoming) {
		bpf_map_update_elem(&tl_incoming, &socket, &fresh, BPF_NOEXIST);
		incoming = bpf_map_lookup_elem(&tl_incoming, &socket);
		if (!incoming) {
			tl_count(TL_FULL_INCOMING);
			return 0;
		}
	}
	tl_option_keep(incoming, option);
	tl_count(TL_OPTION_READ);
	return 0;
}

/*
 * The hook runs before TCP looks at the sequence number, so that anybody who knows the addresses and ports of a
 * connection can send to it. Can TCP take the segment? What lies beyond the window that the socket has offered
 * it drops, and what the peer knows to have arrived is not new. The window may be growing at this moment.
 */
static __always_inline bool tl_in_window(struct bpf_sock *sk, const struct tl_segment *segment)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	__u32 start, end;

	if (!tcp)
		return true;
	start = tcp->rcv_wup;
	end = start + tcp->rcv_wnd + TL_WINDOW_GROWS;
	return (__s32)(segment->seq + segment->len - start) >= 0 &&
	       (__s32)(segment->seq - end) <= 0;
}

static __always_inline int tl_packet(struct __sk_buff *skb, enum tl_direction direction)
{
	struct bpf_sock *sk = skb->sk;
	struct tl_conn *conn;
	struct tl_text *text;
	struct tl_http *http;
	struct tl_segment segment = {};
	bool listens;
	__u32 len;

	if (!sk)
		return 1;
	/* raw sockets may send TCP, and get copies of what connections get */
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->type != TL_SOCK_STREAM)
		return 1;
	conn = TL_CONN_FIND(sk, bpf_get_socket_cookie(skb));
	if (conn && conn->role == TL_ROLE_OFF)
		return 1;
	len = tl_payload(skb, &segment);
	if (!len)
		return 1;
	if (direction == TL_IN) {
		listens = sk->state == BPF_TCP_LISTEN;
		if (listens)
			tl_early_packet(skb, &segment);
		if (segment.off - segment.ip_len >= 20 + TL_OPTION_SPACE)
			tl_option_in(skb,
				     (__u64)segment.ip_len << 32 | (segment.off - segment.ip_len));
		if (listens)
			return 1;
		if (!tl_in_window(sk, &segment)) {
			tl_count(TL_SKIP_OUT_OF_WINDOW);
			return 1;
		}
	}
	if (conn && tl_is_guess(conn) &&
	    conn->role == (direction == TL_IN ? TL_ROLE_CLIENT : TL_ROLE_SERVER) &&
	    tl_looks_like_request(skb, &segment))
		tl_guess_again(conn);
	if (!conn || conn->role == TL_ROLE_UNKNOWN) {
		conn = tl_new_conn(skb, sk, &segment,
				   direction == TL_IN ? TL_ROLE_SERVER : TL_ROLE_CLIENT);
		if (!conn)
			return 1;
	}
	http = direction == TL_IN ? &conn->in : &conn->out;
	if (conn->role == TL_ROLE_SERVER) {
		if (direction == TL_OUT) {
			tl_responds(conn);
			http->flags |= TL_HTTP_RESPONSE;
		}
	} else {
		if (direction == TL_OUT) {
			/* sk_msg saw these bytes already, before the insertion */
			if (tl_is_enrolled(conn))
				return 1;
		} else {
			/* a server that speaks first does not speak HTTP */
			if (!(conn->flags & TL_CONN_USED))
				return 1;
			http->flags |= TL_HTTP_RESPONSE;
		}
	}
	/* Nothing more to learn from this direction: no lock, no text. */
	if (http->state >= TL_HTTP_UNTIL_CLOSE) {
		tl_pass(http, &segment);
		if (http->state != TL_HTTP_LOST || http->flags & TL_HTTP_RESPONSE ||
		    conn->role != TL_ROLE_SERVER || conn->flags & TL_CONN_PIPELINED)
			return 1;
		/*
		 * A new request at the start of a segment brings a lost server connection back. Until
		 * the answer is complete it may as well be the body of the request that is served.
		 */
		if (conn->flags & TL_CONN_ACTIVE && conn->out.state < TL_HTTP_UNTIL_CLOSE)
			return 1;
		if (!tl_looks_like_request(skb, &segment))
			return 1;
	}
	text = TL_TEXT_MAKE(sk, conn->cookie);
	if (!text) {
		tl_count(TL_FULL_STORAGE);
		return 1;
	}
	if (!tl_take(&conn->busy[direction])) {
		/* another processor handles a packet of this direction: the gap check settles it */
		tl_count(TL_LOST_BUSY);
		return 1;
	}
	if (http->state == TL_HTTP_LOST) {
		if (conn->flags & TL_CONN_ACTIVE)
			tl_finish(TL_GIVE_EXCHANGE(conn, text), 0, TL_END_CLOSED);
		tl_http_restart(http);
		http->next_seq = segment.seq;
	}
	tl_stream(skb, conn, text, &segment, direction);
	tl_give_back(&conn->busy[direction]);
	return 1;
}

SEC("cgroup_skb/ingress")
int tl_ingress(struct __sk_buff *skb)
{
	return tl_packet(skb, TL_IN);
}

SEC("cgroup_skb/egress")
int tl_egress(struct __sk_buff *skb)
{
	return tl_packet(skb, TL_OUT);
}

/*
 * Has the application read all of the message that `http` has parsed, and was that all of it? The
 * parser may be ahead of the application. The socket is locked.
 */
static __always_inline bool tl_read_whole(struct sock *sk, const struct tl_http *http)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

	return tcp && http->state == TL_HTTP_START &&
	       (__s32)(tcp->copied_seq - http->next_seq) >= 0;
}

/* The current thread has read data of `sk`; the socket is locked. */
SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(tl_read, struct sock *sk)
{
	struct tl_conn *conn = TL_CONN_FIND(sk, TL_COOKIE(sk));
	struct tl_thread *thread = tl_thread_now();
	__u8 evidence = TL_EVIDENCE_THREAD;
	__u64 key = 0;
	bool whole;

	if (thread)
		tl_leave_partial(thread);
	if (conn && conn->flags & TL_CONN_OPAQUE) {
		conn->flags |= TL_CONN_ANSWERED;
	} else if (!conn || conn->role == TL_ROLE_OFF || conn->role == TL_ROLE_UNKNOWN) {
		/* an event loop goes on with something that we know nothing about */
		if (thread && thread->loop)
			tl_leave(thread);
		return 0;
	}
	if (conn->role == TL_ROLE_SERVER) {
		key = conn->request;
	} else {
		key = conn->parent;
		evidence = TL_EVIDENCE_RESTORE;
	}
	whole = conn->flags & TL_CONN_OPAQUE || tl_read_whole(sk, &conn->in);
	tl_thread_reads(conn, thread, key, evidence, whole);
	return 0;
}

#ifndef TL_LEGACY
/* Did the segment that this processor has parsed for a listener make the connection? */
static __always_inline bool tl_is_early(const struct tl_early *early, struct sock *sk,
					const struct tcp_sock *tcp)
{
	const __u64 *a = (const __u64 *)early->local_addr, *b = (const __u64 *)early->peer_addr;
	__u64 local[2], peer[2];

	if (!early->waits || early->seq != tcp->rcv_nxt || early->acknowledges != tcp->snd_una ||
	    early->peer_port != bpf_ntohs(sk->__sk_common.skc_dport) ||
	    early->local_port != sk->__sk_common.skc_num)
		return false;
	tl_copy_address((__u8 *)local, sk->__sk_common.skc_family, sk->__sk_common.skc_rcv_saddr,
			&sk->__sk_common.skc_v6_rcv_saddr);
	tl_copy_address((__u8 *)peer, sk->__sk_common.skc_family, sk->__sk_common.skc_daddr,
			&sk->__sk_common.skc_v6_daddr);
	return a[0] == local[0] && a[1] == local[1] && b[0] == peer[0] && b[1] == peer[1];
}

/* A connection was made: what its first segment held, if that made it, becomes its own. */
static __always_inline void tl_take_early(struct sock *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct tl_early *early;
	struct tl_conn *conn;
	struct tl_text *text;
	__u32 zero = 0;
	__u64 socket;
	__u16 flags;

	early = bpf_map_lookup_elem(&tl_early, &zero);
	if (!tcp || !early || !tl_is_early(early, sk, tcp))
		return;
	early->waits = 0;
	conn = bpf_sk_storage_get(&tl_conns, sk, &early->conn, BPF_SK_STORAGE_GET_F_CREATE);
	text = bpf_sk_storage_get(&tl_texts, sk, &early->text, BPF_SK_STORAGE_GET_F_CREATE);
	if (!conn || !text) {
		tl_count(TL_FULL_STORAGE);
		if (conn)
			conn->role = TL_ROLE_OFF;
		return;
	}
	tl_count(TL_EARLY_TAKEN);
	socket = bpf_get_socket_cookie(sk);
	if (early->incoming.fresh) {
		tl_count(TL_OPTION_READ);
		if (bpf_map_update_elem(&tl_incoming, &socket, &early->incoming, BPF_ANY))
			tl_count(TL_FULL_INCOMING);
	}
	conn->socket = socket;
	conn->flags &= ~TL_CONN_EARLY;
	if (!(conn->flags & TL_CONN_ACTIVE))
		return; /* the header block goes on in the next segment */
	if (conn->role != TL_ROLE_SERVER) {
		conn->flags &= ~TL_CONN_ACTIVE;
		return;
	}
	flags = conn->in.flags;
	conn->in.flags = conn->early_header;
	tl_begin_server(conn, text);
	conn->in.flags = flags;
	if (conn->flags & TL_CONN_PIPELINED) {
		/* as in tl_pipelined() */
		tl_request_end(conn->request);
		conn->request = 0;
	}
}
#endif

/* A connection comes to its end: so does the exchange on it. */
static __always_inline void tl_closes(struct tl_conn *conn, struct tl_text *text, int newstate)
{
	__u8 state;

	if (!conn || !text || !(conn->flags & TL_CONN_ACTIVE))
		return;
	state = conn->role == TL_ROLE_SERVER ? conn->out.state : conn->in.state;
	if (state == TL_HTTP_UNTIL_CLOSE) {
		/* the end of the response; a client that only stops sending does not end it */
		if (conn->role == TL_ROLE_SERVER && newstate == BPF_TCP_CLOSE_WAIT)
			return;
		tl_finish(TL_GIVE_EXCHANGE(conn, text),
			  conn->role == TL_ROLE_SERVER ? conn->out.status : conn->in.status,
			  TL_END_CLOSE_DELIMITED);
	} else if (newstate == BPF_TCP_CLOSE) {
		tl_finish(TL_GIVE_EXCHANGE(conn, text), 0, TL_END_CLOSED);
	}
}

/* What any group keeps by the cookie of a socket ends with the socket. */
static __always_inline void tl_socket_ends(__u64 cookie)
{
	if (!cookie)
		return;
	bpf_map_delete_elem(&tl_incoming, &cookie);
	bpf_map_delete_elem(&tl_socket_outs, &cookie);
	bpf_map_delete_elem(&tl_go_calls, &cookie);
	if (tl_config.fionread_broken)
		bpf_map_delete_elem(&tl_members, &cookie);
#ifdef TL_LEGACY
	bpf_map_delete_elem(&tl_conns, &cookie);
	bpf_map_delete_elem(&tl_texts, &cookie);
#endif
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tl_state, struct sock *sk, int oldstate, int newstate)
{
	__u64 cookie = TL_COOKIE(sk);

#ifndef TL_LEGACY
	if (oldstate == BPF_TCP_SYN_RECV && newstate == BPF_TCP_ESTABLISHED) {
		tl_take_early(sk);
		return 0;
	}
#endif
	if (newstate != BPF_TCP_CLOSE && oldstate != BPF_TCP_ESTABLISHED)
		return 0;
	tl_closes(TL_CONN_FIND(sk, cookie), TL_TEXT_FIND(sk, cookie), newstate);
	if (newstate == BPF_TCP_CLOSE)
		tl_socket_ends(cookie);
	return 0;
}

/*
 * What a system call does that tells something of a thread. Numbers of the architecture itself, and of
 * x86 those of 32-bit programs (asm/unistd_32.h).
 */
#if defined(__TARGET_ARCH_x86)
#define TL_NR_IOCTL 16
#define TL_NR_POLL 7
#define TL_NR_SELECT 23
#define TL_NR_EPOLL_WAIT 232
#define TL_NR_PSELECT6 270
#define TL_NR_PPOLL 271
#define TL_NR_EPOLL_PWAIT 281
#define TL_NR_IO_URING_ENTER 426
#define TL_NR_EPOLL_PWAIT2 441
#define TL_X32_BIT \
	0x40000000 /* of programs with 32-bit pointers, whose numbers are others here and there */
#define TL_NR_X32_IOCTL (TL_X32_BIT | 514)
#elif defined(__TARGET_ARCH_arm64)
#define TL_NR_IOCTL 29
#define TL_NR_POLL -1
#define TL_NR_SELECT -1
#define TL_NR_EPOLL_WAIT -1
#define TL_NR_PSELECT6 72
#define TL_NR_PPOLL 73
#define TL_NR_EPOLL_PWAIT 22
#define TL_NR_IO_URING_ENTER 426
#define TL_NR_EPOLL_PWAIT2 441
#endif

#define TL_FIONREAD 0x541b

/* A process asks how much it can read: where the kernel lies to it, its sockets must leave. */
static __always_inline void tl_learn_fionread(void)
{
	struct task_struct *task = tl_current_task();
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	__u32 born = tl_born(TL_READ(task, group_leader));
	__u32 *known = bpf_map_lookup_elem(&tl_fionread, &tgid);

	if (known && *known == born)
		return;
	if (!bpf_map_update_elem(&tl_fionread, &tgid, &born, BPF_ANY))
		tl_count(TL_FIONREAD_LEARNED);
}

enum tl_call {
	TL_CALL_OTHER = 0,
	TL_CALL_WAIT, /* for several descriptors */
	TL_CALL_IOCTL,
};

/* `second` and `third` are arguments of the system call `number`. */
static __always_inline enum tl_call tl_call_of(__u32 number, __u64 second, __u64 third)
{
	switch (number) {
	case TL_NR_EPOLL_WAIT:
	case TL_NR_EPOLL_PWAIT:
	case TL_NR_EPOLL_PWAIT2:
	case TL_NR_PSELECT6:
#if defined(__TARGET_ARCH_x86)
	case TL_NR_SELECT:
#endif
		return TL_CALL_WAIT;
#if defined(__TARGET_ARCH_x86)
	case TL_NR_POLL:
#endif
	case TL_NR_PPOLL:
		return second < 2 ? TL_CALL_OTHER : TL_CALL_WAIT;
	case TL_NR_IOCTL:
		return TL_CALL_IOCTL;
	case TL_NR_IO_URING_ENTER:
		/* min_complete: only a call that waits */
		return third ? TL_CALL_WAIT : TL_CALL_OTHER;
	}
	return TL_CALL_OTHER;
}

#if defined(__TARGET_ARCH_x86)
/* The same of a 32-bit program. */
static __always_inline enum tl_call tl_call32_of(__u32 number, __u32 second, __u32 third)
{
	switch (number) {
	case 82: /* select */
	case 142: /* _newselect */
	case 256: /* epoll_wait */
	case 308: /* pselect6 */
	case 319: /* epoll_pwait */
	case 413: /* pselect6_time64 */
	case 441: /* epoll_pwait2 */
		return TL_CALL_WAIT;
	case 168: /* poll */
	case 309: /* ppoll */
	case 414: /* ppoll_time64 */
		return second < 2 ? TL_CALL_OTHER : TL_CALL_WAIT;
	case 54:
		return TL_CALL_IOCTL;
	case 426: /* io_uring_enter */
		return third ? TL_CALL_WAIT : TL_CALL_OTHER;
	}
	return TL_CALL_OTHER;
}
#endif

/*
 * The end of a tick. Waiting for one descriptor (a client library that waits for its answer) is
 * not one. The tracepoint costs every system call of the host some nanoseconds (docs/decisions/0003-end-of-tick.md).
 */
SEC("tp_btf/sys_enter")
int BPF_PROG(tl_tick, struct pt_regs *regs, long id)
{
	__u64 second = PT_REGS_PARM2_SYSCALL(regs);
	struct tl_thread *thread;
	enum tl_call call;

#if defined(__TARGET_ARCH_x86)
	enum tl_call call32 = tl_call32_of(id, regs->cx, regs->dx);

	if (id == TL_NR_X32_IOCTL)
		id = TL_NR_IOCTL;
	call = tl_call_of(id & ~TL_X32_BIT, second, PT_REGS_PARM3_SYSCALL(regs));
	/* asked last: this runs in every system call of the host */
	if (call != call32 && tl_is_compat()) {
		call = call32;
		second = regs->cx;
	}
#else
	call = tl_call_of(id, second, PT_REGS_PARM3_SYSCALL(regs));
#endif
	if (call == TL_CALL_OTHER)
		return 0;
	if (call == TL_CALL_IOCTL) {
		if (tl_config.fionread_broken && (__u32)second == TL_FIONREAD)
			tl_learn_fionread();
		return 0;
	}
	thread = tl_thread_now();
	if (!thread)
		return 0;
	tl_leave_partial(thread);
	thread->current = 0;
	thread->unknown = 0;
	thread->loop = 1;
	return 0;
}

/*
 * Ends requests whose end nobody has seen: the agent walks tl_requests and names them here, by BPF_PROG_RUN. Attached
 * nowhere. A raw tracepoint, since that can be run in this way from Linux 5.10 on (1b4d60ec162f), and iterators are
 * refused on some kernels. A key of 0 names none.
 */
SEC("raw_tp")
int tl_end_requests(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 keys[TL_ENDED_AT_ONCE];
	__u32 i;

	/* the verifier wants constant offsets into the context */
#pragma unroll
	for (i = 0; i < TL_ENDED_AT_ONCE; i++)
		keys[i] = ctx->args[i];
	for (i = 0; i < TL_ENDED_AT_ONCE; i++) {
		if (keys[i])
			tl_request_end(keys[i]);
	}
	return 0;
}
