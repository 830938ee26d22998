// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * tls/tls.bpf.c - group `tls`: HTTP/1.x inside of TLS, where the process hands it to OpenSSL.
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
#include "evidence/exchange.h"

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
#else
#define TL_TLS_TEXT(conn) TL_TEXT_FIND(, (conn)->cookie)
#endif

#define TL_TLS_CALLS \
	4 /* that a thread is in at once: one inside of another, or on stacks of their own */

/* A call that a thread is in. */
struct tl_tls_call {
	__u64 key; /* of the TLS connection, or 0: none */
	__u64 stack; /* where its return address is: tells it from calls around it and inside of it */
	__u64 buffer; /* addresses in the process */
	__u64 length_at; /* where an _ex function leaves how much it has read or written */
	__u64 length; /* of the buffer */
	__u32 parsed; /* of what is written, with what was parsed before and comes again */
	__u8 deferred; /* what is written is looked at when the call has succeeded */
	__u8 _pad[3];
};

/* A thread: its calls for TLS connections, and the socket that it has read last. */
struct tl_tls_thread {
	struct tl_tls_call calls[TL_TLS_CALLS];
	__u64 socket; /* cookie of the socket that was read outside of any call, or 0 */
	__u64 connect; /* its tl_conn.connect */
	__u8 local_addr[16];
	__u8 peer_addr[16];
	__u16 local_port;
	__u16 peer_port;
	__u32 flags; /* its tl_conn.flags */
	__u32 born; /* see tl_born() */
	__u32 turn; /* which call gives way where there are too many */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct tl_tls_thread);
} tl_tls_threads SEC(".maps");

/*
 * Processes that were seen to call OpenSSL, and when they began (tl_born()): only their reads are of
 * interest.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
} tl_tls_pids SEC(".maps");

/* Addresses are multiples of 16. */
static __always_inline __u64 tl_tls_key(__u64 ssl)
{
	return tl_process_key(ssl >> 4);
}

/* What is known of the current thread. `make`: also of one of which nothing is known yet. */
static __always_inline struct tl_tls_thread *tl_tls_thread_now(bool make)
{
	struct task_struct *task = tl_current_task();
	struct tl_tls_thread *thread;
	__u32 tid = tl_current_tid();
	const void *nothing;
	__u32 zero = 0;

	thread = bpf_map_lookup_elem(&tl_tls_threads, &tid);
	if (thread && tl_is_born(task, thread->born))
		return thread;
	if (thread) /* that of one that has ended, whose number it was */
		bpf_map_delete_elem(&tl_tls_threads, &tid);
	if (!make)
		return NULL;
	nothing = bpf_map_lookup_elem(&tl_nothing, &zero);
	if (!nothing)
		return NULL;
	bpf_map_update_elem(&tl_tls_threads, &tid, nothing, BPF_NOEXIST);
	thread = bpf_map_lookup_elem(&tl_tls_threads, &tid);
	if (thread)
		thread->born = tl_born(task);
	return thread;
}

/* The call whose return address is there, or NULL. */
static __always_inline struct tl_tls_call *tl_tls_call_at(struct tl_tls_thread *thread, __u64 stack)
{
	__u32 i;

	for (i = 0; i < TL_TLS_CALLS; i++)
		if (thread->calls[i].key && thread->calls[i].stack == stack)
			return &thread->calls[i];
	return NULL;
}

/*
 * The key of the TLS connection that the thread is in a call for, or 0. Of the calls that lie above the
 * thread's stack pointer the nearest: what calls from one stack and what from another (coroutines) is not
 * to be mixed up. Where the stack pointer cannot be had, the lowest of all.
 */
static __always_inline __u64 tl_tls_inside(const struct tl_tls_thread *thread)
{
	__u64 found = 0, nearest = ~0ULL >> 1, distance;
	struct tl_user user = {};
	__u32 i;

	tl_read_user(&user);
	for (i = 0; i < TL_TLS_CALLS; i++) {
		distance = thread->calls[i].stack - user.sp;
		if (!thread->calls[i].key || distance >= nearest)
			continue;
		nearest = distance;
		found = thread->calls[i].key;
	}
	return found;
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

/*
 * A request inside of TLS goes out; the thread that wrote it is the current one. A function of its own,
 * for its stack.
 */
__noinline int tl_tls_asks(TL_EXCHANGE)
{
	TL_TAKE_EXCHANGE(conn, text);
	struct tl_parent parent;
	bool found;

	if (!conn || !text)
		return 0;
	found = tl_find_parent(conn, &parent);
	tl_begin_client(conn, text, found ? &parent : NULL);
	return 0;
}

static __always_inline void tl_tls_call(struct tl_conn *conn, struct tl_text *text)
{
	tl_tls_asks(TL_GIVE_EXCHANGE(conn, text));
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
 * Parses what comes next of `left` bytes (at most TL_WENT_MAX) at `address` in the process. Returns tl_went(), 0
 * when the rest says nothing, -1 when it is not HTTP. A function of its own, too.
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
	if (what != TL_FEED_MORE && what != TL_FEED_HEADERS && what != TL_FEED_MESSAGE)
		return -1;
	return tl_went(skipped + chunk->pos, what);
}

/*
 * As many as TL_CHUNKS_MAX of them, and what they come to. Returns how many bytes it has gone on, 0 when the rest
 * says nothing, -1 when it is not HTTP. A function of its own, too: what is written at once takes more turns than
 * the verifier would walk.
 */
__noinline int tl_tls_chunks(TL_EXCHANGE, __u64 address, __u32 left, __u32 direction)
{
	TL_TAKE_EXCHANGE(conn, text);
	__u32 off = 0;
	__u32 i;

	if (!conn || !text)
		return 0;
	for (i = 0; i < TL_CHUNKS_MAX && off < left; i++) {
		__u32 rest = left - off < TL_WENT_MAX ? left - off : TL_WENT_MAX;
		int went =
			tl_tls_chunk(TL_GIVE_EXCHANGE(conn, text), address + off, rest, direction);

		if (went <= 0)
			return went;
		off += went & TL_WENT_MAX;
		if (went > (int)TL_WENT_MAX)
			tl_tls_event(TL_GIVE_EXCHANGE(conn, text), direction, went >> TL_WENT_BITS);
	}
	return off;
}

static __always_inline void tl_tls_stream(struct tl_conn *conn, __u64 address, __u64 length,
					  __u32 direction)
{
	struct tl_text *text;
	__u32 off = 0;
	__u32 i;

	for (i = 0; i < TL_ROUNDS_MAX && off < length; i++) {
		int went = tl_tls_chunks(TL_GIVE_EXCHANGE(conn, TL_TLS_TEXT(conn)), address + off,
					 length - off, direction);

		if (!went)
			return;
		if (went < 0)
			break;
		off += (__u32)went;
	}
	if (off >= length)
		return;
	if (conn->flags & TL_CONN_USED) {
		tl_count(TL_TLS_LOST);
		tl_http_of(conn, direction)->state = TL_HTTP_LOST;
		return;
	}
	if (!(conn->flags & TL_CONN_OPAQUE))
		tl_count(TL_TLS_NOT_HTTP);
	conn->flags |= TL_CONN_OPAQUE;
	text = TL_TLS_TEXT(conn);
	if (text && tl_is_http2(text))
		conn->role = TL_ROLE_OFF;
	else
		tl_guess_again(conn);
}

/* Requests of the connection are lost: may one begin anew? Not before the last one is answered. */
static __always_inline bool tl_tls_may_begin(const struct tl_conn *conn,
					     const struct tl_http *response)
{
	if (conn->flags & TL_CONN_PIPELINED)
		return false;
	return !(conn->flags & TL_CONN_ACTIVE) || response->state >= TL_HTTP_UNTIL_CLOSE;
}

/*
 * Does what the process reads or writes concern us? A connection is a server's when its first bytes
 * that are a request come in, and a client's when they go out. One that is older than the agent may be
 * in the middle of something; it may also not be HTTP.
 */
static __always_inline bool tl_tls_concerns(struct tl_conn *conn, __u64 address, __u64 length,
					    __u32 direction)
{
	__u8 asks = direction == TL_IN ? TL_ROLE_SERVER : TL_ROLE_CLIENT;
	struct tl_http *http = tl_http_of(conn, direction);
	bool lost = conn->role == asks && http->state == TL_HTTP_LOST;
	__u8 start[4] = {};
	__u32 n = length < 4 ? length : 4;

	if (conn->role == TL_ROLE_OFF || !n)
		return false;
	if (conn->role == asks && !lost)
		return true;
	if (conn->role != TL_ROLE_UNKNOWN && !lost && conn->flags & TL_CONN_USED)
		return true;
	if (lost && !tl_tls_may_begin(conn, tl_http_of(conn, !direction)))
		return false;
	if (bpf_probe_read_user(start, tl_length(n, 4), (void *)address) ||
	    !tl_begins_request(start, n))
		return conn->role != TL_ROLE_UNKNOWN && !lost;
	if (lost) {
		if (conn->flags & TL_CONN_ACTIVE)
			tl_finish(TL_GIVE_EXCHANGE(conn, TL_TLS_TEXT(conn)), 0, TL_END_CLOSED);
		tl_http_restart(http);
		return true;
	}
	if (conn->role != TL_ROLE_UNKNOWN)
		tl_guess_again(conn);
	conn->role = asks;
	return true;
}

/*
 * The thread hands `length` bytes to OpenSSL, which are about to be sent. Those that it handed over before
 * and that were not sent come first: they were parsed. OpenSSL insists on the same bytes; there may be
 * more or less of them than there were.
 */
static __always_inline void tl_tls_write(struct tl_conn *conn, struct tl_tls_call *call,
					 __u64 length)
{
	__u64 address = call->buffer, span;
	struct tl_tls_out *out;
	const void *nothing;
	__u32 before = conn->unsent;
	__u32 tid, zero = 0;

	conn->unsent = 0;
	call->parsed = before > length ? before : length;
	if (before >= length)
		return;
	address += before;
	length -= before;
	if (!tl_tls_concerns(conn, address, length, TL_OUT))
		return;
	span = tl_key(conn->span_id);
	if (conn->role == TL_ROLE_SERVER) {
		tl_responds(conn);
		conn->out.flags |= TL_HTTP_RESPONSE;
	}
	tl_tls_stream(conn, address, length, TL_OUT);
	if (conn->role != TL_ROLE_CLIENT || !(conn->flags & TL_CONN_ACTIVE) ||
	    span == tl_key(conn->span_id) || conn->out.flags & TL_HTTP_HAS_TRACEPARENT)
		return;
	/* a request has begun: what the thread sends next is it */
	tid = tl_current_tid();
	nothing = bpf_map_lookup_elem(&tl_nothing, &zero);
	if (!nothing)
		return;
	bpf_map_update_elem(&tl_tls_outs, &tid, nothing, BPF_ANY);
	out = bpf_map_lookup_elem(&tl_tls_outs, &tid);
	if (!out)
		return;
	out->key = call->key;
	out->socket = conn->socket;
	__builtin_memcpy(out->trace_id, conn->trace_id, 16);
	__builtin_memcpy(out->span_id, conn->span_id, 8);
	out->trace_flags = conn->trace_flags;
	out->pending = 1;
}

/* The thread has got `length` decrypted bytes. */
static __always_inline void tl_tls_read(struct tl_conn *conn, __u64 address, __u64 length)
{
	struct tl_thread *thread;
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
	thread = tl_thread_now();
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

	if (conn->socket || conn->unsent)
		return false;
	thread = tl_thread_now();
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

/* A place for a call whose return address is at `stack`: that of one that has ended. */
static __always_inline struct tl_tls_call *tl_tls_place(struct tl_tls_thread *thread, __u64 stack)
{
	struct tl_tls_call *call = tl_tls_call_at(thread, stack);
	struct tl_conn *conn;
	__u64 key;
	__u32 i;

	if (call) /* it has ended without being seen: by longjmp(), say */
		return call;
	for (i = 0; i < TL_TLS_CALLS; i++)
		if (!thread->calls[i].key)
			return &thread->calls[i];
	call = &thread->calls[thread->turn++ & (TL_TLS_CALLS - 1)];
	/* what it reads or writes will not be seen */
	key = call->key;
	conn = tl_tls_find(key);
	if (conn) {
		tl_count(TL_TLS_LOST);
		conn->in.state = TL_HTTP_LOST;
		conn->out.state = TL_HTTP_LOST;
	}
	return call;
}

/* What a call hands over: the SSL, and what it reads or writes. */
struct tl_tls_arguments {
	__u64 ssl;
	__u64 buffer;
	__u64 length;
	__u64 length_at;
};

/*
 * A thread calls OpenSSL for a connection. `takes`: to get what was received. NULL, or the call and the
 * connection.
 */
static __always_inline struct tl_tls_call *tl_tls_enter(struct pt_regs *ctx,
							const struct tl_tls_arguments *given,
							bool takes, struct tl_conn **of)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct tl_tls_thread *thread;
	struct tl_tls_call *call;
	struct tl_conn *conn;
	__u32 born, *known;

	if (!given->ssl || !tl_tls_traced())
		return NULL;
	born = tl_born(TL_READ(tl_current_task(), group_leader));
	known = bpf_map_lookup_elem(&tl_tls_pids, &tgid);
	if (!known || *known != born)
		bpf_map_update_elem(&tl_tls_pids, &tgid, &born, BPF_ANY);
	thread = tl_tls_thread_now(true);
	if (!thread)
		return NULL;
	call = tl_tls_place(thread, PT_REGS_SP(ctx));
	call->key = tl_tls_key(given->ssl);
	call->stack = PT_REGS_SP(ctx);
	call->buffer = given->buffer;
	call->length = given->length;
	call->length_at = given->length_at;
	call->parsed = 0;
	call->deferred = 0;
	conn = tl_tls_make(call->key);
	if (!conn) {
		call->key = 0;
		return NULL;
	}
	if (thread->socket)
		tl_tls_handed_over(conn, thread, takes);
	conn->flags |= TL_CONN_CALLED;
	*of = conn;
	return call;
}

/* A call returns. NULL: it was none that we follow. */
static __always_inline struct tl_tls_call *tl_tls_leave(struct pt_regs *ctx, __u64 *key)
{
	struct tl_tls_thread *thread = tl_tls_thread_now(false);
	struct tl_tls_call *call;

	if (!thread)
		return NULL;
	call = tl_tls_call_at(thread, PT_REGS_SP(ctx) - TL_RETURN_BYTES);
	if (!call)
		return NULL;
	*key = call->key;
	call->key = 0;
	return call;
}

/* How many bytes a call has read or written; `result` is what it returns. */
static __always_inline __u64 tl_tls_length(const struct tl_tls_call *call, int result)
{
	__u64 length = 0;

	if (result <= 0)
		return 0;
	if (!call->length_at)
		return result;
	if (bpf_probe_read_user(&length, sizeof(length), (void *)call->length_at))
		return 0;
	return length <= call->length ? length : 0;
}

static __always_inline int tl_tls_has_read(struct pt_regs *ctx, int result)
{
	struct tl_tls_call *call;
	struct tl_conn *conn;
	__u64 key, length;

	call = tl_tls_leave(ctx, &key);
	if (!call)
		return 0;
	length = tl_tls_length(call, result);
	if (!length)
		return 0;
	conn = tl_tls_find(key);
	if (conn)
		tl_tls_read(conn, call->buffer, length);
	else
		tl_count(TL_TLS_GAVE_WAY);
	return 0;
}

static __always_inline int tl_tls_writes(struct pt_regs *ctx, const struct tl_tls_arguments *given)
{
	struct tl_tls_call *call;
	struct tl_conn *conn;

	call = tl_tls_enter(ctx, given, false, &conn);
	if (!call || !given->length)
		return 0;
	if (tl_tls_defer(conn))
		call->deferred = 1;
	else
		tl_tls_write(conn, call, given->length);
	return 0;
}

static __always_inline int tl_tls_has_written(struct pt_regs *ctx, int result)
{
	struct tl_tls_call *call;
	struct tl_conn *conn;
	__u64 key, length;

	call = tl_tls_leave(ctx, &key);
	if (!call)
		return 0;
	conn = tl_tls_find(key);
	if (!conn) {
		tl_count(TL_TLS_GAVE_WAY);
		return 0;
	}
	length = tl_tls_length(call, result);
	if (call->deferred) {
		if (length) {
			call->key = key;
			tl_tls_write(conn, call, length);
			call->key = 0;
		}
		return 0;
	}
	if (conn->role != TL_ROLE_UNKNOWN && conn->role != TL_ROLE_OFF && length < call->parsed)
		conn->unsent = call->parsed - length;
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_read, __u64 ssl, __u64 buffer, int length)
{
	struct tl_tls_arguments given = { ssl, buffer, length };
	struct tl_conn *conn;

	tl_own_stack(ctx);
	tl_tls_enter(ctx, &given, true, &conn);
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_read_ex, __u64 ssl, __u64 buffer, __u64 length, __u64 length_at)
{
	struct tl_tls_arguments given = { ssl, buffer, length, length_at };
	struct tl_conn *conn;

	tl_own_stack(ctx);
	tl_tls_enter(ctx, &given, true, &conn);
	return 0;
}

SEC("uretprobe")
int BPF_KRETPROBE(tl_ssl_has_read, int result)
{
	tl_own_stack(ctx);
	return tl_tls_has_read(ctx, result);
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_write, __u64 ssl, __u64 buffer, int length)
{
	struct tl_tls_arguments given = { ssl, buffer, length };

	tl_own_stack(ctx);
	return length > 0 ? tl_tls_writes(ctx, &given) : 0;
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_write_ex, __u64 ssl, __u64 buffer, __u64 length, __u64 length_at)
{
	struct tl_tls_arguments given = { ssl, buffer, length, length_at };

	tl_own_stack(ctx);
	return tl_tls_writes(ctx, &given);
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_write_x2, __u64 ssl, __u64 buffer, __u64 length, __u64 flags, __u64 length_at)
{
	struct tl_tls_arguments given = { ssl, buffer, length, length_at };

	tl_own_stack(ctx);
	return tl_tls_writes(ctx, &given);
}

SEC("uretprobe")
int BPF_KRETPROBE(tl_ssl_has_sent, int result)
{
	tl_own_stack(ctx);
	return tl_tls_has_written(ctx, result);
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_shake, __u64 ssl)
{
	struct tl_tls_arguments given = { ssl };
	struct tl_conn *conn;

	tl_own_stack(ctx);
	tl_tls_enter(ctx, &given, true, &conn);
	return 0;
}

SEC("uretprobe")
int BPF_KRETPROBE(tl_ssl_shaken, int result)
{
	__u64 key;

	tl_own_stack(ctx);
	tl_tls_leave(ctx, &key);
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
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	__u32 *born = bpf_map_lookup_elem(&tl_tls_pids, &tgid);
	struct task_struct *task = tl_current_task();
	struct tl_tls_thread *thread;
	struct tl_conn *conn, *tls;
	__u64 socket, key;

	if (!born || !tl_is_born(TL_READ(task, group_leader), *born))
		return 0;
	thread = tl_tls_thread_now(true);
	if (!thread)
		return 0;
#ifdef TL_LEGACY
	socket = TL_COOKIE(sk); /* tracing programs may not ask for it before Linux 5.12 */
	conn = bpf_map_lookup_elem(&tl_conns, &socket);
#else
	socket = bpf_get_socket_cookie(sk);
	conn = TL_CONN_FIND(sk, socket);
#endif
	key = tl_tls_inside(thread);
	tls = key ? tl_tls_find(key) : NULL;
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
