// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * tls.bpf.c - group `tls`: HTTP/1.x inside of TLS, where the process hands it to OpenSSL.
 *
 *   SSL_read, SSL_read_ex    what was received, once it is decrypted
 *   SSL_write, SSL_write_ex, SSL_write_ex2 (OpenSSL 3.3)
 *                            what is going to be sent, before it is encrypted
 *   SSL_do_handshake         which socket a TLS connection is on
 *   SSL_free                 its end
 *   tcp_rcv_space_adjust     which socket a thread has read
 *
 * A TLS connection is known by its SSL and process. Its socket is the one that the thread reads inside of
 * a call for it; a process that reads the socket itself and hands the bytes over (Node.js, asyncio)
 * does so before such a call. Nothing is changed in the process: only memory is read.
 */
#define TL_OF_TLS
#include "exchange.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#ifndef TL_LEGACY
/* One TLS connection and the exchange inside of it. */
struct tl_tls {
	struct tl_conn conn;
	struct tl_text text;
};

/* The oldest give way: a process that dies frees none of its connections. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64); /* tl_tls_key() */
	__type(value, struct tl_tls);
} tl_tls SEC(".maps");

#define TL_TLS_TEXT(conn) (&((struct tl_tls *)(conn))->text)
#endif

/* A thread: its call for a TLS connection, and the socket that it has read last. */
struct tl_tls_thread {
	__u64 key; /* of the TLS connection while a call is under way, or 0 */
	__u64 buffer; /* addresses in the process */
	__u64 length_at; /* where an _ex function leaves how much it has read or written */
	__u64 length; /* of the buffer */
	__u64 socket; /* cookie of the socket that was read outside of any call, or 0 */
	__u64 connect; /* its tl_conn.connect */
	__u8 local_addr[16];
	__u8 peer_addr[16];
	__u16 local_port;
	__u16 peer_port;
	__u16 flags; /* its tl_conn.flags */
	__u8 deferred; /* what is written is looked at when the call has succeeded */
	__u8 handshake; /* the call is a handshake, not one that is made inside of another call */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct tl_tls_thread);
} tl_tls_threads SEC(".maps");

/* Processes that were seen to call OpenSSL: only their reads are of interest. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u8);
} tl_tls_pids SEC(".maps");

/* Addresses are multiples of 16 below 2^47, process ids below 2^22. */
static __always_inline __u64 tl_tls_key(__u64 ssl)
{
	return ssl >> 4 ^ bpf_get_current_pid_tgid() >> 32 << 42;
}

static __always_inline struct tl_conn *tl_tls_find(__u64 key)
{
#ifdef TL_LEGACY
	return TL_CONN_FIND(, key);
#else
	return bpf_map_lookup_elem(&tl_tls, &key);
#endif
}

static __always_inline struct tl_conn *tl_tls_make(__u64 key)
{
	struct tl_conn *conn = tl_tls_find(key);

	if (conn)
		return conn;
#ifdef TL_LEGACY
	conn = TL_CONN_MAKE(, key);
	if (conn && !TL_TEXT_MAKE(, key))
		conn = NULL;
#else
	const void *nothing;
	__u32 zero = 0;

	nothing = bpf_map_lookup_elem(&tl_nothing, &zero);
	if (!nothing)
		return NULL;
	bpf_map_update_elem(&tl_tls, &key, nothing, BPF_NOEXIST);
	conn = tl_tls_find(key);
#endif
	if (!conn) {
		tl_count(TL_FULL_TLS);
		return NULL;
	}
	/* until its socket is known it may be one that was just made: see tl_find_parent() */
	conn->flags = TL_CONN_TLS | TL_CONN_CONNECTED;
	conn->cgroup_id = bpf_get_current_cgroup_id();
	conn->pid = bpf_get_current_pid_tgid() >> 32;
	return conn;
}

static __always_inline void tl_tls_forget(__u64 key)
{
#ifdef TL_LEGACY
	bpf_map_delete_elem(&TL_CONNS, &key);
	bpf_map_delete_elem(&TL_TEXTS, &key);
#else
	bpf_map_delete_elem(&tl_tls, &key);
#endif
}

/* The TLS connection is on the socket that the thread has read. */
static __always_inline void tl_tls_on(struct tl_conn *conn, const struct tl_tls_thread *thread)
{
	conn->socket = thread->socket;
	__builtin_memcpy(conn->local_addr, thread->local_addr, 16);
	__builtin_memcpy(conn->peer_addr, thread->peer_addr, 16);
	conn->local_port = thread->local_port;
	conn->peer_port = thread->peer_port;
	if (conn->flags & TL_CONN_USED)
		return;
	conn->connect = thread->connect;
	conn->flags &= ~TL_CONN_CONNECTED;
	conn->flags |= thread->flags & TL_CONN_CONNECTED;
}

/* A request inside of TLS goes out; the thread that wrote it is the current one. */
static __always_inline void tl_tls_call(struct tl_conn *conn, struct tl_text *text)
{
	struct tl_request *parent;
	__u8 evidence = TL_EVIDENCE_NONE;
	__u64 key = 0;

	parent = tl_find_parent(conn, &key, &evidence);
	tl_begin_client(conn, text, parent, key, evidence);
}

/* A function of its own, so that the verifier walks it once. */
__noinline int tl_tls_event(TL_EXCHANGE, __u32 direction, __u32 what)
{
	TL_TAKE_EXCHANGE(conn, text);

	if (conn && text)
		tl_stream_event(conn, text, direction & 1, what, tl_tls_call);
	return 0;
}

/*
 * Parses what comes next of `left` bytes at `address` in the process. Returns how many bytes it has
 * gone on, 0 when the rest says nothing, -1 when it is not HTTP. A function of its own, too.
 */
__noinline int tl_tls_chunk(TL_EXCHANGE, __u64 address, __u32 left, __u32 direction)
{
	TL_TAKE_EXCHANGE(conn, text);
	struct tl_http *http;
	__u32 skipped, n;
	int what;

	if (!conn || !text)
		return 0;
	TL_CHUNK_OF(conn, direction, chunk);
	http = tl_http_of(conn, direction);
	if (conn->role == TL_ROLE_OFF || http->state >= TL_HTTP_UNTIL_CLOSE)
		return 0;
	skipped = tl_http_skip(http, left);
	tl_http_seen(http, skipped);
	if (skipped >= left)
		return skipped;
	n = left - skipped;
	if (n > TL_CHUNK)
		n = TL_CHUNK;
	if (bpf_probe_read_user(chunk->data, tl_length(n, TL_CHUNK), (void *)(address + skipped))) {
		tl_count(TL_TLS_LOST);
		http->state = TL_HTTP_LOST;
		return 0;
	}
	if (!tl_chunk_ready(conn, text, http, chunk, n, 0))
		return 0;
	what = tl_http_feed(TL_GIVE_STREAM(conn, text, direction, chunk));
	if (what == TL_FEED_HEADERS || what == TL_FEED_MESSAGE)
		tl_tls_event(TL_GIVE_EXCHANGE(conn, text), direction, what);
	else if (what != TL_FEED_MORE)
		return -1;
	return skipped + chunk->pos;
}

/* What is inside cannot be followed any more; what was under way ends here. */
static __always_inline void tl_tls_give_up(struct tl_conn *conn)
{
	if (conn->flags & TL_CONN_ACTIVE)
		tl_finish(TL_GIVE_EXCHANGE(conn, TL_TLS_TEXT(conn)), 0, TL_END_CLOSED);
	conn->role = TL_ROLE_OFF;
}

static __always_inline void tl_tls_stream(struct tl_conn *conn, __u64 address, __u64 length,
					  __u32 direction)
{
	__u32 off = 0;
	__u32 i;

	for (i = 0; i < TL_CHUNKS_MAX && off < length; i++) {
		int went = tl_tls_chunk(TL_GIVE_EXCHANGE(conn, TL_TLS_TEXT(conn)), address + off,
					length - off, direction);

		if (!went)
			return;
		if (went < 0)
			break;
		off += (__u32)went;
	}
	if (off >= length)
		return;
	tl_count(conn->flags & TL_CONN_USED ? TL_TLS_LOST : TL_TLS_NOT_HTTP);
	tl_tls_give_up(conn);
}

/*
 * Does what the process reads or writes concern us? A connection is a server's when its first bytes
 * that are a request come in, and a client's when they go out.
 */
static __always_inline bool tl_tls_concerns(struct tl_conn *conn, __u64 address, __u64 length,
					    __u32 direction)
{
	__u8 start[4] = {};
	__u32 n = length < 4 ? length : 4;

	if (conn->role == TL_ROLE_OFF || !n)
		return false;
	if (conn->role != TL_ROLE_UNKNOWN)
		return true;
	if (bpf_probe_read_user(start, tl_length(n, 4), (void *)address) ||
	    !tl_begins_request(start, n)) {
		/* older than the agent, in the middle of something; or it is not HTTP */
		return false;
	}
	conn->role = direction == TL_IN ? TL_ROLE_SERVER : TL_ROLE_CLIENT;
	return true;
}

/* The thread hands `length` bytes to OpenSSL, which are about to be sent. */
static __always_inline void tl_tls_write(struct tl_conn *conn, __u64 key, __u64 address,
					 __u64 length)
{
	struct tl_tls_out out = {};
	__u32 tid = tl_current_tid();

	if (conn->flags & TL_CONN_RETRY) {
		/* OpenSSL insists on the same bytes: they were parsed */
		conn->flags &= ~TL_CONN_RETRY;
		return;
	}
	if (!tl_tls_concerns(conn, address, length, TL_OUT))
		return;
	__builtin_memcpy(out.span_id, conn->span_id, 8);
	if (conn->role == TL_ROLE_SERVER) {
		tl_responds(conn);
		conn->out.flags |= TL_HTTP_RESPONSE;
	}
	tl_tls_stream(conn, address, length, TL_OUT);
	if (conn->role != TL_ROLE_CLIENT || !(conn->flags & TL_CONN_ACTIVE) ||
	    tl_key(out.span_id) == tl_key(conn->span_id) ||
	    conn->out.flags & TL_HTTP_HAS_TRACEPARENT)
		return;
	/* a request has begun: what the thread sends next is it */
	out.key = key;
	out.socket = conn->socket;
	__builtin_memcpy(out.trace_id, conn->trace_id, 16);
	__builtin_memcpy(out.span_id, conn->span_id, 8);
	out.trace_flags = conn->trace_flags;
	out.pending = 1;
	bpf_map_update_elem(&tl_tls_outs, &tid, &out, BPF_ANY);
}

/* The thread has got `length` decrypted bytes. */
static __always_inline void tl_tls_read(struct tl_conn *conn, __u64 address, __u64 length)
{
	struct tl_thread *thread;
	__u32 tid = tl_current_tid();
	__u64 before, key;
	__u8 evidence;

	if (!tl_tls_concerns(conn, address, length, TL_IN))
		return;
	before = conn->request;
	if (conn->role == TL_ROLE_CLIENT) {
		/* a server that speaks first does not speak HTTP */
		if (!(conn->flags & TL_CONN_USED))
			return;
		conn->in.flags |= TL_HTTP_RESPONSE;
	}
	tl_tls_stream(conn, address, length, TL_IN);
	thread = bpf_map_lookup_elem(&tl_threads, &tid);
	if (thread)
		tl_leave_partial(thread);
	if (conn->role == TL_ROLE_SERVER) {
		key = conn->request;
		evidence = TL_EVIDENCE_THREAD;
		if (key != before && !conn->socket)
			tl_count(TL_TLS_NO_SOCKET);
	} else {
		key = conn->parent;
		evidence = TL_EVIDENCE_RESTORE;
	}
	tl_thread_reads(conn, thread, key, evidence, conn->in.state == TL_HTTP_START);
}

/*
 * A process that hands over bytes itself (Node.js) may write its request before the handshake is done
 * and write it again then. At first nothing is known that could tell for whom it is: neither the
 * socket, nor a request that the thread of an event loop would be working for.
 */
static __always_inline bool tl_tls_defer(const struct tl_conn *conn)
{
	struct tl_thread *thread;
	__u32 tid = tl_current_tid();

	if (conn->socket || conn->flags & TL_CONN_RETRY)
		return false;
	thread = bpf_map_lookup_elem(&tl_threads, &tid);
	return !thread || !thread->current || thread->loop;
}

/*
 * The thread has read a socket itself, and hands over what it got there; but not with its first call
 * for a connection: a client's comes before there is anything to read. `takes`: the call is one to get
 * what was received. One that writes may do so as well, until the handshake is done.
 */
static __always_inline void tl_tls_handed_over(struct tl_conn *conn, struct tl_tls_thread *thread,
					       bool takes)
{
	bool first = !(conn->flags & TL_CONN_CALLED);

	if (!first && !conn->socket) {
		tl_tls_on(conn, thread);
	} else if (!first && !takes) {
		return;
	} else if (!first && conn->socket != thread->socket && !(conn->flags & TL_CONN_USED)) {
		/* one of the two was a chance: which of them is not known */
		conn->socket = 0;
		conn->connect = 0;
		conn->flags |= TL_CONN_CONNECTED;
	}
	thread->socket = 0;
}

/*
 * A probe fires in every process that maps the file, below the cgroups that we are attached to or
 * not: only cgroups that user space has listed count.
 */
static __always_inline bool tl_tls_traced(void)
{
	__u64 cgroup_id = bpf_get_current_cgroup_id();
	__u8 *traced = bpf_map_lookup_elem(&tl_cgroups, &cgroup_id);

	return traced && *traced;
}

/* A thread calls OpenSSL for a connection. `takes`: to get what was received. */
static __always_inline struct tl_conn *tl_tls_enter(__u64 ssl, __u64 buffer, __u64 length,
						    __u64 length_at, bool takes)
{
	struct tl_tls_thread *thread, fresh = {};
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	__u32 tgid = pid_tgid >> 32;
	__u32 tid = pid_tgid;
	struct tl_conn *conn;
	__u8 one = 1;

	if (!ssl || !tl_tls_traced())
		return NULL;
	thread = bpf_map_lookup_elem(&tl_tls_threads, &tid);
	if (!thread) {
		bpf_map_update_elem(&tl_tls_pids, &tgid, &one, BPF_ANY);
		bpf_map_update_elem(&tl_tls_threads, &tid, &fresh, BPF_NOEXIST);
		thread = bpf_map_lookup_elem(&tl_tls_threads, &tid);
		if (!thread)
			return NULL;
	}
	thread->key = tl_tls_key(ssl);
	thread->buffer = buffer;
	thread->length = length;
	thread->length_at = length_at;
	thread->deferred = 0;
	thread->handshake = 0;
	conn = tl_tls_make(thread->key);
	if (!conn) {
		thread->key = 0;
		return NULL;
	}
	if (thread->socket)
		tl_tls_handed_over(conn, thread, takes);
	conn->flags |= TL_CONN_CALLED;
	return conn;
}

/* The call returns. NULL: it was none that we follow. */
static __always_inline struct tl_tls_thread *tl_tls_leave(__u64 *key)
{
	struct tl_tls_thread *thread;
	__u32 tid = tl_current_tid();

	thread = bpf_map_lookup_elem(&tl_tls_threads, &tid);
	if (!thread || !thread->key)
		return NULL;
	*key = thread->key;
	thread->key = 0;
	return thread;
}

/* How many bytes a call has read or written; `result` is what it returns. */
static __always_inline __u64 tl_tls_length(const struct tl_tls_thread *thread, int result)
{
	__u64 length = 0;

	if (result <= 0)
		return 0;
	if (!thread->length_at)
		return result;
	if (bpf_probe_read_user(&length, sizeof(length), (void *)thread->length_at))
		return 0;
	return length <= thread->length ? length : 0;
}

static __always_inline int tl_tls_has_read(int result)
{
	struct tl_tls_thread *thread;
	struct tl_conn *conn;
	__u64 key, length;

	thread = tl_tls_leave(&key);
	if (!thread)
		return 0;
	length = tl_tls_length(thread, result);
	if (!length)
		return 0;
	conn = tl_tls_find(key);
	if (conn)
		tl_tls_read(conn, thread->buffer, length);
	else
		tl_count(TL_TLS_GAVE_WAY);
	return 0;
}

static __always_inline int tl_tls_writes(__u64 ssl, __u64 buffer, __u64 length, __u64 length_at)
{
	struct tl_conn *conn = tl_tls_enter(ssl, buffer, length, length_at, false);
	struct tl_tls_thread *thread;
	__u32 tid = tl_current_tid();

	if (!conn || !length)
		return 0;
	if (!tl_tls_defer(conn)) {
		tl_tls_write(conn, tl_tls_key(ssl), buffer, length);
		return 0;
	}
	thread = bpf_map_lookup_elem(&tl_tls_threads, &tid);
	if (thread)
		thread->deferred = 1;
	return 0;
}

static __always_inline int tl_tls_has_written(int result)
{
	struct tl_tls_thread *thread;
	struct tl_http *http;
	struct tl_conn *conn;
	__u64 key, length;

	thread = tl_tls_leave(&key);
	if (!thread)
		return 0;
	conn = tl_tls_find(key);
	if (!conn) {
		tl_count(TL_TLS_GAVE_WAY);
		return 0;
	}
	length = tl_tls_length(thread, result);
	if (thread->deferred) {
		if (length)
			tl_tls_write(conn, key, thread->buffer, length);
		return 0;
	}
	if (conn->role == TL_ROLE_UNKNOWN || conn->role == TL_ROLE_OFF)
		return 0;
	if (!length) {
		conn->flags |= TL_CONN_RETRY;
	} else if (length < thread->length) {
		/* the rest will be written again, as something new */
		http = &conn->out;
		if (!tl_http_back(http, thread->length - length)) {
			tl_count(TL_TLS_LOST);
			tl_tls_give_up(conn);
		}
	}
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_read, __u64 ssl, __u64 buffer, int length)
{
	tl_own_stack(ctx);
	tl_tls_enter(ssl, buffer, length, 0, true);
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_read_ex, __u64 ssl, __u64 buffer, __u64 length, __u64 length_at)
{
	tl_own_stack(ctx);
	tl_tls_enter(ssl, buffer, length, length_at, true);
	return 0;
}

SEC("uretprobe")
int BPF_KRETPROBE(tl_ssl_has_read, int result)
{
	tl_own_stack(ctx);
	return tl_tls_has_read(result);
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_write, __u64 ssl, __u64 buffer, int length)
{
	tl_own_stack(ctx);
	return length > 0 ? tl_tls_writes(ssl, buffer, length, 0) : 0;
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_write_ex, __u64 ssl, __u64 buffer, __u64 length, __u64 length_at)
{
	tl_own_stack(ctx);
	return tl_tls_writes(ssl, buffer, length, length_at);
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_write_x2, __u64 ssl, __u64 buffer, __u64 length, __u64 flags, __u64 length_at)
{
	tl_own_stack(ctx);
	return tl_tls_writes(ssl, buffer, length, length_at);
}

SEC("uretprobe")
int BPF_KRETPROBE(tl_ssl_has_sent, int result)
{
	tl_own_stack(ctx);
	return tl_tls_has_written(result);
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_shake, __u64 ssl)
{
	struct tl_tls_thread *thread;
	__u32 tid = tl_current_tid();

	tl_own_stack(ctx);
	thread = bpf_map_lookup_elem(&tl_tls_threads, &tid);
	if (thread && thread->key == tl_tls_key(ssl))
		return 0; /* BoringSSL: SSL_read calls it */
	tl_tls_enter(ssl, 0, 0, 0, true);
	thread = bpf_map_lookup_elem(&tl_tls_threads, &tid);
	if (thread)
		thread->handshake = 1;
	return 0;
}

SEC("uretprobe")
int BPF_KRETPROBE(tl_ssl_shaken, int result)
{
	struct tl_tls_thread *thread;
	__u32 tid = tl_current_tid();

	tl_own_stack(ctx);
	thread = bpf_map_lookup_elem(&tl_tls_threads, &tid);
	if (thread && thread->handshake)
		thread->key = 0;
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_free, __u64 ssl)
{
	__u64 key = tl_tls_key(ssl);
	struct tl_http *response;
	struct tl_conn *conn;
	bool complete;

	tl_own_stack(ctx);
	conn = tl_tls_find(key);
	if (!conn)
		return 0;
	if (conn->flags & TL_CONN_ACTIVE) {
		response = conn->role == TL_ROLE_SERVER ? &conn->out : &conn->in;
		complete = response->state == TL_HTTP_UNTIL_CLOSE;
		tl_finish(TL_GIVE_EXCHANGE(conn, TL_TLS_TEXT(conn)),
			  complete ? response->status : 0,
			  complete ? TL_END_CLOSE_DELIMITED : TL_END_CLOSED);
	}
	tl_tls_forget(key);
	return 0;
}

/* The current thread has read a socket: inside of a call, it is the one of its TLS connection. */
SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(tl_ssl_socket, struct sock *sk)
{
	struct tl_tls_thread *thread, fresh = {};
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	__u32 tgid = pid_tgid >> 32;
	__u32 tid = pid_tgid;
	struct tl_conn *conn, *tls;
	__u64 socket;

	if (!bpf_map_lookup_elem(&tl_tls_pids, &tgid))
		return 0;
	thread = bpf_map_lookup_elem(&tl_tls_threads, &tid);
	if (!thread) {
		bpf_map_update_elem(&tl_tls_threads, &tid, &fresh, BPF_NOEXIST);
		thread = bpf_map_lookup_elem(&tl_tls_threads, &tid);
		if (!thread)
			return 0;
	}
#ifdef TL_LEGACY
	socket = TL_COOKIE(sk); /* tracing programs may not ask for it before Linux 5.12 */
	conn = bpf_map_lookup_elem(&tl_conns, &socket);
#else
	socket = bpf_get_socket_cookie(sk);
	conn = TL_CONN_FIND(sk, socket);
#endif
	tls = thread->key ? tl_tls_find(thread->key) : NULL;
	if (tls && tls->socket == socket)
		return 0;
	if (conn && !(conn->flags & TL_CONN_OPAQUE) &&
	    (conn->role == TL_ROLE_SERVER || conn->role == TL_ROLE_CLIENT) &&
	    conn->flags & TL_CONN_USED) {
		/* plaintext: no TLS connection is on it */
		thread->socket = 0;
		return 0;
	}
	thread->socket = socket;
	thread->connect = conn ? conn->connect : 0;
	thread->flags = conn ? conn->flags : 0;
	thread->local_port = sk->__sk_common.skc_num;
	thread->peer_port = bpf_ntohs(sk->__sk_common.skc_dport);
	tl_copy_address(thread->local_addr, sk->__sk_common.skc_family,
			sk->__sk_common.skc_rcv_saddr, &sk->__sk_common.skc_v6_rcv_saddr);
	tl_copy_address(thread->peer_addr, sk->__sk_common.skc_family, sk->__sk_common.skc_daddr,
			&sk->__sk_common.skc_v6_daddr);
	if (tls) {
		tl_tls_on(tls, thread);
		thread->socket = 0;
	}
	return 0;
}
