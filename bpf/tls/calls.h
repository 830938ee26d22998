/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * tls/calls.h - which calls of OpenSSL each thread is in, and which sockets it reads.
 *
 * The socket of a TLS connection is the one that a thread reads during a call for that connection.
 * A process that reads the socket itself and hands the bytes over (Node.js, asyncio) reads it
 * before such a call.
 */
#ifndef THROUGHLINE_TLS_CALLS_H
#define THROUGHLINE_TLS_CALLS_H

#include "core/registers.h"
#include "core/settings.h"
#include "evidence/work.h"
#include "tls/connection.h"

/*
 * The most calls that a thread is in: one may call another, and coroutines have stacks of their
 * own.
 */
#define TL_TLS_CALLS 4

/* A call that a thread is in. */
struct tl_tls_call {
	__u64 key; /* of the TLS connection, or 0: none */
	__u64 stack; /* where its return address is: this tells the thread's calls apart */
	__u64 buffer; /* addresses in the process */
	__u64 length_at; /* where an _ex function writes how many bytes it has read or written */
	__u64 length; /* of the buffer */
	__u32 parsed; /* bytes of the buffer that were parsed, now or in an earlier call that did not write them */
	__u8 deferred; /* the bytes are parsed when the call has succeeded */
	__u8 late; /* the first one that was seen for its connection, after the thread has read a socket */
	__u8 _pad[2];
};

/* A thread: its calls for TLS connections, and the socket that it read last. */
struct tl_tls_thread {
	struct tl_tls_call calls[TL_TLS_CALLS];
	/* the socket that was read outside of any call; the cookie is 0 where there is none */
	struct tl_endpoints endpoints;
	__u64 connect; /* its tl_flow.connect */
	__u32 flags; /* its tl_flow.flags */
	__u32 born; /* see tl_born() */
	__u32 turn; /* which call gives way where the thread is in too many */
	__u32 _pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct tl_tls_thread);
} tl_tls_threads SEC(".maps");

/*
 * Processes that were seen to call OpenSSL, and when they began (tl_born()). Reads of sockets by
 * other processes are ignored.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
} tl_tls_pids SEC(".maps");

/* The entry of the current thread, or NULL. `make`: makes one where there is none. */
static __always_inline struct tl_tls_thread *tl_tls_thread_now(bool make)
{
	struct task_struct *task = tl_current_task();
	struct tl_tls_thread *thread;
	__u32 tid = tl_current_tid();

	thread = bpf_map_lookup_elem(&tl_tls_threads, &tid);
	if (thread && tl_is_born(task, thread->born))
		return thread;
	if (thread) /* the entry of a thread that has ended, which had the same id */
		bpf_map_delete_elem(&tl_tls_threads, &tid);
	if (!make)
		return NULL;
	tl_insert_zeros(&tl_tls_threads, &tid, BPF_NOEXIST);
	thread = bpf_map_lookup_elem(&tl_tls_threads, &tid);
	if (thread)
		thread->born = tl_born(task);
	return thread;
}

/* The thread's call whose return address is at `stack`, or NULL. */
static __always_inline struct tl_tls_call *tl_tls_call_at(struct tl_tls_thread *thread, __u64 stack)
{
	__u32 i;

	for (i = 0; i < TL_TLS_CALLS; i++)
		if (thread->calls[i].key && thread->calls[i].stack == stack)
			return &thread->calls[i];
	return NULL;
}

/*
 * The key of the TLS connection that the thread is in a call for, or 0. It is the nearest call
 * above the stack pointer, since coroutines make calls on several stacks. Where the stack pointer
 * is not known, it is the call that is lowest in memory.
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

/* The TLS connection is on the socket that the thread has read. */
static __always_inline void tl_tls_on(struct tl_flow *flow, const struct tl_tls_thread *thread)
{
	flow->endpoints = thread->endpoints;
	if (flow->flags & TL_FLOW_USED)
		return;
	flow->connect = thread->connect;
	flow->flags &= ~TL_FLOW_CONNECTED;
	flow->flags |= thread->flags & TL_FLOW_CONNECTED;
}

/*
 * The thread has read a socket itself, and hands over the bytes with this call. But the first call
 * for a connection hands over none: a client makes it before there is anything to read. `takes`:
 * the call is to get what was received. Until the handshake is done a call that writes takes
 * received bytes, too.
 */
static __always_inline void tl_tls_handed_over(struct tl_flow *flow, struct tl_tls_thread *thread,
					       bool takes)
{
	bool first = !(flow->flags & TL_FLOW_CALLED);

	/* an answer is written when the handshake is done */
	if (!first && !takes && (flow->endpoints.socket || flow->role == TL_ROLE_SERVER))
		return;
	if (!first && !flow->endpoints.socket) {
		tl_tls_on(flow, thread);
	} else if (!first && flow->endpoints.socket != thread->endpoints.socket &&
		   !(flow->flags & TL_FLOW_USED)) {
		/* one of the two sockets was read by chance, and it is not known which one */
		flow->endpoints.socket = 0;
		flow->connect = 0;
		flow->flags |= TL_FLOW_CONNECTED;
	}
	thread->endpoints.socket = 0;
}

/*
 * The first call that was seen for a connection has got `length` decrypted bytes. Where there are
 * any, the connection is older than the probes. Node.js hands over what it has read at once, so the
 * bytes are of the socket that the thread has read last.
 */
static __always_inline void tl_tls_took(struct tl_flow *flow, __u64 length)
{
	struct tl_tls_thread *thread = tl_tls_thread_now(false);

	if (!thread || !thread->endpoints.socket)
		return;
	if (length && !flow->endpoints.socket && tl_work_shows())
		tl_tls_on(flow, thread);
	thread->endpoints.socket = 0;
}

/* A place for a call whose return address is at `stack`. */
static __always_inline struct tl_tls_call *tl_tls_place(struct tl_tls_thread *thread, __u64 stack)
{
	struct tl_tls_call *call = tl_tls_call_at(thread, stack);
	struct tl_flow *flow;
	__u64 key;
	__u32 i;

	if (call) /* the call that had this place has ended unseen, as by longjmp() */
		return call;
	for (i = 0; i < TL_TLS_CALLS; i++)
		if (!thread->calls[i].key)
			return &thread->calls[i];
	call = &thread->calls[thread->turn++ & (TL_TLS_CALLS - 1)];
	/* what that call reads or writes will not be seen */
	key = call->key;
	flow = tl_tls_find(key);
	if (flow) {
		tl_count(TL_TLS_LOST);
		flow->in.state = TL_HTTP_LOST;
		flow->out.state = TL_HTTP_LOST;
	}
	return call;
}

/* The arguments of a call. */
struct tl_tls_arguments {
	__u64 ssl;
	__u64 buffer;
	__u64 length;
	__u64 length_at;
};

/*
 * A thread calls OpenSSL for a connection. `takes`: to get what was received. Returns the call, and
 * its connection in `of`; or NULL.
 */
static __always_inline struct tl_tls_call *tl_tls_enter(struct pt_regs *ctx,
							const struct tl_tls_arguments *given,
							bool takes, struct tl_flow **of)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct tl_tls_thread *thread;
	struct tl_tls_call *call;
	struct tl_flow *flow;
	__u32 born, *known;

	if (!given->ssl || !tl_probe_traced())
		return NULL;
	born = tl_process_born();
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
	call->late = 0;
	flow = tl_tls_make(call->key);
	if (!flow) {
		call->key = 0;
		return NULL;
	}
	if (thread->endpoints.socket && takes && !(flow->flags & TL_FLOW_CALLED))
		call->late = 1; /* see tl_tls_took() */
	else if (thread->endpoints.socket)
		tl_tls_handed_over(flow, thread, takes);
	flow->flags |= TL_FLOW_CALLED;
	*of = flow;
	return call;
}

/* A call returns. NULL: it is not followed. */
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

/* How many bytes a call has read or written. `result`: its return value. */
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

#endif
