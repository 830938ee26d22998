// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * io/unix.bpf.c - part of the group `observe`: HTTP/1.x and FastCGI on Unix stream
 * sockets. It is an object of its own, since older kernels refuse it.
 *
 *   sk_data_ready     bytes have been queued at the other end, which is not woken yet; or a
 *                     connection is being made
 *   sock_send_length  a send returns: how many bytes were sent
 *   sock_recv_length  bytes were read; or the other end has closed
 *
 * The tracepoints exist since Linux 6.3; before, with TL_FEXIT, the functions that have them since.
 * They run in the context of the caller, whose buffers are read. No request is changed: the other
 * end is on this host, so that its parent is known.
 */
#include "io/unix_stream.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define TL_AWAITS 4 /* times that a reader looks for the entry of the other end */
#define TL_PAUSE 32 /* readings of the clock in between */
#define TL_ECONNRESET 104
#define TL_EPIPE 32

/* Waits about half a microsecond. A global function, which the verifier walks once. */
__noinline int tl_unix_pauses(void)
{
	__u64 now = 0;
	__u32 i;

	for (i = 0; i < TL_PAUSE; i++)
		now = bpf_ktime_get_ns();
	return now != 0;
}

/* The ends of a connection: `end` writes. False: it carries no HTTP. */
static __always_inline bool tl_unix_pair(struct sock *sk, struct sock *peer, struct tl_unix **end,
					 struct tl_unix **other, struct tl_text **text)
{
	*end = tl_unix_find(sk);
	*other = tl_unix_find(peer);
	if (*end && (*end)->flow.role == TL_ROLE_CLIENT) {
		*text = bpf_sk_storage_get(&tl_texts, sk, NULL, 0);
		return *text;
	}
	if (!*other || (*other)->flow.role != TL_ROLE_CLIENT)
		return false;
	*text = bpf_sk_storage_get(&tl_texts, peer, NULL, 0);
	if (!*end || (*end)->flow.role != TL_ROLE_SERVER)
		*end = tl_unix_make(sk, TL_ROLE_SERVER);
	return *end && *text;
}

/* A connection carries its first request, which the current thread sends on `sk`. */
static __noinline struct tl_unix *tl_unix_begins(struct sock *sk, struct sock *peer,
						 struct tl_text **text)
{
	struct tl_unix_connect *made;
	__u64 key = (__u64)sk;
	struct tl_unix *end;

	/* before its role: the other end reads both on another processor, and the role tells it to */
	*text = bpf_sk_storage_get(&tl_texts, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!*text) {
		tl_count(TL_FULL_STORAGE);
		return NULL;
	}
	end = tl_unix_make(sk, TL_ROLE_CLIENT);
	if (!end)
		return NULL;
	if (!tl_unix_path(peer, *text))
		tl_unix_path(sk, *text);
	made = bpf_map_lookup_elem(&tl_unix_made, &key);
	if (made) {
		end->flow.flags |= TL_FLOW_CONNECTED;
		end->flow.connect = made->request;
		end->flow.likely = made->likely;
		end->flow.tid = made->tid;
		if (made->claims)
			tl_claim(end->flow.endpoints.socket, made->request, TL_EVIDENCE_PROXY);
		bpf_map_delete_elem(&tl_unix_made, &key);
	}
	return end;
}

/*
 * The current thread connects: during which request? A global function, to have a stack of its own.
 */
__noinline int tl_unix_connects_now(void)
{
	struct tl_thread *thread = tl_thread_now();
	__u64 key = tl_unix_connecting();
	struct tl_unix_connect made = {};
	struct tl_parent parent = {};
	struct tl_trust *trust;
	__u64 request;
	int refused;

	if (!key) {
		tl_thread_acts(thread);
		return 0;
	}
	request = tl_work_connects();
	if ((!thread && !request) || !tl_unix_traced(bpf_get_current_cgroup_id())) {
		/* what an earlier socket at this address has left */
		bpf_map_delete_elem(&tl_unix_made, &key);
		return 0;
	}
	made.tid = tl_current_tid();
	if (request) {
		made.claims = 1;
		if (request != TL_PROXY_NOTHING) {
			made.request = request;
			tl_settle(request, false);
		}
	} else if (!tl_is_told(true)) {
		trust = tl_trust_now();
		refused = tl_thread_parent(thread, trust, 0, &parent);
		if (refused < 0) {
			made.request = parent.key;
			made.likely = parent.likely;
			tl_settle(parent.key, false);
		} else {
			tl_unattributed(thread, trust, refused);
		}
	}
	tl_thread_acts(thread);
	bpf_map_update_elem(&tl_unix_made, &key, &made, BPF_ANY);
	return 0;
}

/* The current process makes a call. No inline function, to have a stack of its own. */
static __noinline int tl_unix_caller_now(struct tl_unix *end)
{
	__u64 cgroup_id = bpf_get_current_cgroup_id();

	end->flow.cgroup_id = cgroup_id;
	end->flow.pid = bpf_get_current_pid_tgid() >> 32;
	end->flow.flags &= ~TL_FLOW_UNTRACED;
	if (!tl_unix_traced(cgroup_id))
		end->flow.flags |= TL_FLOW_UNTRACED;
	return 0;
}

/* Bytes have been queued at `peer`, or a connection to it is being made. */
static __always_inline int tl_unix_queued(struct sock *peer)
{
	struct tl_unix *end, *other;
	struct tl_text *text;
	__u8 protocol = TL_UNIX_NONE;
	struct sock *sk;

	if (!tl_is_unix_stream(peer))
		return 0;
	if (peer->__sk_common.skc_state == BPF_TCP_LISTEN) {
		tl_unix_connects_now();
		return 0;
	}
	sk = tl_unix_peer(peer);
	if (!sk)
		return 0;
	if (!tl_unix_pair(sk, peer, &end, &other, &text)) {
		/* the server answers, and the other end has not parsed any request */
		if (end && end->ahead)
			tl_unix_gives_up(end);
		if (!end || end->flow.role != TL_ROLE_OFF)
			protocol = tl_unix_starts();
		if (!protocol)
			return 0;
		end = tl_unix_begins(sk, peer, &text);
		if (!end)
			return 0;
		end->protocol = protocol;
	}
	/* the send goes on: all of it was parsed with its first bytes */
	if (end->parsed && !*(volatile __u8 *)&end->received)
		return 0;
	if (!tl_take(&end->flow.busy[TL_OUT])) {
		tl_unix_count(&end->flow, TL_LOST_BUSY);
		return 0;
	}
	end->received = 0;
	if (end->flow.role == TL_ROLE_CLIENT)
		tl_unix_caller_now(end);
#ifdef TL_TEST_SLOW /* as if the thread was preempted */
	for (int i = 0; end->flow.role == TL_ROLE_CLIENT && i < TL_TEST_SLOW; i++)
		tl_unix_pauses();
#endif
	tl_unix_end_writes(end, other, text, -1);
	tl_give_back(&end->flow.busy[TL_OUT]);
	return 0;
}

/* The current thread has sent `sent` bytes on `sk`, or has got an error, which is negative. */
static __always_inline int tl_unix_has_sent(struct sock *sk, int sent)
{
	struct tl_unix *end, *other;
	struct tl_text *text;
	struct sock *peer;
	__u32 parsed;

	if (!tl_is_unix_stream(sk))
		return 0;
	peer = tl_unix_peer(sk);
	if (!peer)
		return 0;
	if (!tl_unix_pair(sk, peer, &end, &other, &text)) {
		/* what it sent looked like a request: the other end may have read it as one */
		if (end && other && end->flow.role != TL_ROLE_SERVER)
			tl_unix_parsed(other, end, NULL);
		tl_acts_now();
		return 0;
	}
	if (sent == -TL_EPIPE || sent == -TL_ECONNRESET) {
		end->parsed = 0;
		if (end->flow.role == TL_ROLE_CLIENT)
			tl_unix_closes(other, end, text);
		else
			tl_unix_closes(end, other, text);
		return 0;
	}
#ifdef TL_TEST_LATE /* as if the thread was preempted */
	for (int i = 0; end->flow.role == TL_ROLE_SERVER && i < TL_TEST_LATE; i++)
		tl_unix_pauses();
#endif
	parsed = end->parsed;
	if (sent > 0 && (__u32)sent > parsed && tl_take(&end->flow.busy[TL_OUT])) {
		tl_unix_end_writes(end, other, text, sent);
		tl_give_back(&end->flow.busy[TL_OUT]);
	}
	/* the other end's entry may be younger than the bytes that were sent */
	if (end->flow.role != TL_ROLE_SERVER) {
		tl_unix_parsed(tl_unix_find(peer), end, text);
		tl_acts_now();
	}
	if (sent < 0)
		sent = 0;
	end->sent += sent;
	end->parsed = 0;
	if (parsed > (__u32)sent)
		end->unsent = parsed - sent;
	return 0;
}

/*
 * The other end has no entry yet. Is it making one at this moment? Its bytes are in the queue a
 * little before they are parsed. Returns the entry, or NULL.
 */
static __always_inline struct tl_unix *tl_unix_awaited(struct sock *peer)
{
	struct tl_unix *end;
	__u32 i;

	for (i = 0; i < TL_AWAITS; i++) {
		end = tl_unix_find(peer);
		if (end && *(volatile __u8 *)&end->flow.role == TL_ROLE_CLIENT) {
			tl_order_weak();
			return end;
		}
		tl_unix_pauses();
	}
	return NULL;
}

static __always_inline bool tl_unix_is_idle(struct sock *peer)
{
	struct tl_unix *end = tl_unix_find(peer);

	return end && end->flow.role != TL_ROLE_CLIENT &&
	       !*(volatile __u32 *)&end->flow.busy[TL_OUT];
}

/*
 * The current thread has read what is not parsed yet: the other end's thread was preempted, or is
 * slower. If it looks like a request, a key for it is made now, so that the thread or task is known
 * to serve it. The other end completes its entry when it has parsed: tl_unix_parsed().
 */
static __always_inline void tl_unix_reads_ahead(struct tl_unix *server)
{
	if (server->flow.exchange.flags & TL_EXCHANGE_ACTIVE || server->ahead ||
	    !tl_unix_starts() || !tl_unix_reader_now(server))
		return;
	tl_count(TL_UNIX_RACED);
	tl_begin_unparsed(&server->flow.exchange);
	tl_unix_tell(&server->ahead); /* TL_AHEAD_READ */
}

/* The current thread has read what the client has sent. `client`: its entry, or NULL. */
static __always_inline void tl_unix_reads_request(struct sock *sk, struct sock *peer,
						  struct tl_unix *client, struct tl_thread *thread,
						  __u32 bytes)
{
	struct tl_unix *server = tl_unix_find(sk);
	struct tl_text *text;
	bool whole = false;

	if (!server || server->flow.role != TL_ROLE_SERVER)
		server = tl_unix_make(sk, TL_ROLE_SERVER);
	if (!server)
		return;
	server->read += bytes;
	if (!client || !tl_unix_waits(client, server->read, TL_WAITS_SHORT)) {
		tl_unix_reads_ahead(server);
		/* it may have been made meanwhile */
		client = tl_unix_find(peer);
	}
	text = bpf_sk_storage_get(&tl_texts, peer, NULL, 0);
	if (client && text && client->flow.role == TL_ROLE_CLIENT) {
		tl_unix_takes(server, client, text);
		whole = client->flow.out.state == TL_HTTP_START && !sk->sk_receive_queue.qlen;
	}
	tl_thread_reads(&server->flow, thread, server->flow.exchange.request, TL_EVIDENCE_THREAD,
			whole && !server->ahead, NULL);
}

/* The current thread has read `bytes` from `sk`; 0: its end. */
static __always_inline int tl_unix_has_read(struct sock *sk, int bytes, int flags)
{
	struct tl_unix *end, *other;
	struct tl_thread *thread;
	struct tl_text *text;
	struct sock *peer;
	int starts = 0;
	bool whole;

	if (!tl_is_unix_stream(sk) || flags & TL_MSG_PEEK)
		return 0;
	if (bytes < 0 && bytes != -TL_ECONNRESET)
		return 0;
	peer = tl_unix_peer(sk);
	if (!peer)
		return 0;
	end = tl_unix_find(sk);
	other = tl_unix_find(peer);
	if (bytes <= 0) {
		text = bpf_sk_storage_get(&tl_texts, sk, NULL, 0);
		if (end && text && end->flow.role == TL_ROLE_CLIENT)
			tl_unix_closes(other, end, text);
		return 0;
	}
	thread = tl_thread_now();
	if (thread) {
		tl_timers_wake(thread);
		tl_leave_partial(thread);
	}
	if (end && end->flow.role == TL_ROLE_CLIENT) {
		/* behind the answer of FastCGI the front end awaits the end of the connection */
		whole = end->protocol == TL_UNIX_HTTP &&
			(!other || other->flow.out.state == TL_HTTP_START);
		tl_thread_reads(&end->flow, thread, end->flow.caller, TL_EVIDENCE_RESTORE, whole,
				NULL);
		return 0;
	}
	if (!end && (!other || other->flow.role == TL_ROLE_UNKNOWN)) {
		starts = tl_unix_starts();
		if (starts)
			other = tl_unix_awaited(peer);
		/* an entry that nobody works at: the bytes were parsed, and are no request */
		if (starts && !other && tl_unix_is_idle(peer))
			starts = 0;
	}
	if (starts || (end && end->ahead) || (other && other->flow.role == TL_ROLE_CLIENT))
		tl_unix_reads_request(sk, peer, other, thread, bytes);
	else if (thread && thread->loop) /* it goes on with something unknown */
		tl_leave(thread);
	return 0;
}

#ifdef TL_FEXIT
SEC("fentry/sock_def_readable")
int BPF_PROG(tl_unix_sends, struct sock *peer)
{
	return tl_unix_queued(peer);
}

SEC("fexit/unix_stream_sendmsg")
int BPF_PROG(tl_unix_sent, struct socket *socket, struct msghdr *message, size_t size, int sent)
{
	return tl_unix_has_sent(socket->sk, sent);
}

SEC("fexit/unix_stream_recvmsg")
int BPF_PROG(tl_unix_read, struct socket *socket, struct msghdr *message, size_t size, int flags,
	     int bytes)
{
	return tl_unix_has_read(socket->sk, bytes, flags);
}
#else
SEC("tp_btf/sk_data_ready")
int BPF_PROG(tl_unix_sends, struct sock *peer)
{
	return tl_unix_queued(peer);
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(tl_unix_sent, struct sock *sk, int sent, int flags)
{
	return tl_unix_has_sent(sk, sent);
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(tl_unix_read, struct sock *sk, int bytes, int flags)
{
	return tl_unix_has_read(sk, bytes, flags);
}
#endif
