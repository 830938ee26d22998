/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * io/unix.h - Unix stream sockets: the two ends of a connection, and what is kept of each.
 *
 * Both ends are on this host. Each end parses what it writes, in the flow of its own socket. What it
 * reads has been parsed by the other end. The end that sends requests is the client's; it keeps the
 * text of the request.
 */
#ifndef THROUGHLINE_IO_UNIX_H
#define THROUGHLINE_IO_UNIX_H

#include "evidence/find.h"
#include "io/user.h"
#include "proto/fastcgi.h"
#include "wire/detect.h"

#define TL_PATH_AT 2 /* offset of sun_path in struct sockaddr_un */
#define TL_LOOKS 64
#define TL_WAITS 64
#define TL_WAITS_SHORT 4 /* where what is awaited may also come later */

enum tl_unix_protocol {
	TL_UNIX_NONE = 0,
	TL_UNIX_HTTP,
	TL_UNIX_FASTCGI,
};

/*
 * The server has read a request before the other end has parsed it, and has made a key for it. One of
 * them completes its entry: the other end when it has parsed, or the server when it reads on.
 */
enum tl_unix_ahead {
	TL_AHEAD_NOT = 0,
	TL_AHEAD_READ, /* the key is made */
	TL_AHEAD_PARSED, /* the other end completes the entry */
	TL_AHEAD_ANSWERED, /* and meanwhile the server has answered */
};

struct tl_unix {
	struct tl_flow flow;
	__u32 parsed; /* bytes of the present system call that were parsed before they were sent */
	__u32 unsent; /* bytes that were parsed but not sent: they come again */
	__u32 sent; /* bytes that were sent before the present system call */
	__u32 read; /* bytes that were read */
	__u64 began; /* client: when its request had begun that was the last before the present call */
	__u32 arrived; /* client: it has sent a request that the other end has not begun to read */
	__u32 ahead; /* server: enum tl_unix_ahead */
	__u32 gone; /* server: it has answered a request that the other end had not parsed */
	__u8 protocol; /* enum tl_unix_protocol */
	/*
	 * Written by the other end, which has received all that `parsed` counts and has gone on: bytes
	 * that come now are another send's. That one may return later, or no program saw it return.
	 */
	__u8 received;
	__u8 _pad[2];
	struct tl_fastcgi fastcgi; /* of what it sends */
	__u8 _pad2[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct tl_unix);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_unix_ends SEC(".maps");

/* A connection that a known thread has made, until it carries the first request. */
struct tl_unix_connect {
	__u64 request; /* the request that the thread worked for, or 0 */
	__u32 tid;
	__u8 likely; /* the evidence for that is likely, not proven */
	__u8 claims; /* a proxy has said which request it is for, or that it is for none */
	__u8 _pad[2];
};

/* By the address of the socket that connects. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_unix_connect);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_unix_made SEC(".maps");

/*
 * The cgroups that the agent is attached to, by id. Written by the agent. Tracepoints fire for all
 * processes of the host, also for those that the agent has nothing to do with.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_roots SEC(".maps");

#define TL_LEVELS 16 /* of the tree of cgroups */

/* Is the current process in a cgroup below one of tl_roots? Walked once, with a stack of its own. */
__noinline int tl_unix_in_roots(void)
{
	__u64 id;
	__u32 i;

	for (i = 0; i < TL_LEVELS; i++) {
		id = bpf_get_current_ancestor_cgroup_id(i);
		if (!id)
			break;
		if (bpf_map_lookup_elem(&tl_roots, &id))
			return 1;
	}
	return 0;
}

/* Is the current process traced, which is in this cgroup? */
static __always_inline bool tl_unix_traced(__u64 cgroup_id)
{
	return tl_traced(cgroup_id) && tl_unix_in_roots();
}

/*
 * Counts what happens at an end of a traced process: the programs see all Unix sockets of the host. A
 * client's flow says so before it is parsed, a server has an entry only behind a client's request.
 */
static __always_inline void tl_unix_count(const struct tl_flow *flow, __u32 counter)
{
	if (!(flow->flags & TL_FLOW_UNTRACED))
		tl_count(counter);
}

static __always_inline bool tl_is_unix_stream(const struct sock *sk)
{
	return sk->__sk_common.skc_family == TL_AF_UNIX && sk->sk_type == TL_SOCK_STREAM;
}

/*
 * The other end. A stream socket holds a reference to it until it is closed itself: it is valid
 * while one of the two is in a system call.
 */
static __always_inline struct sock *tl_unix_peer(struct sock *sk)
{
	struct unix_sock *unix = bpf_skc_to_unix_sock(sk);

	return unix ? unix->peer : NULL;
}

static __always_inline struct tl_unix *tl_unix_find(struct sock *sk)
{
	return bpf_sk_storage_get(&tl_unix_ends, sk, NULL, 0);
}

static __always_inline struct tl_unix *tl_unix_make(struct sock *sk, __u8 role)
{
	struct tl_unix *end =
		bpf_sk_storage_get(&tl_unix_ends, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (!end) {
		tl_count(TL_FULL_STORAGE);
		return NULL;
	}
	end->flow.endpoints.socket = bpf_get_socket_cookie(sk);
	end->flow.exchange.flags = TL_EXCHANGE_UNIX;
	tl_order();
	end->flow.role = role;
	return end;
}

/* Sets `arrived`, `ahead` or `gone`, before another one of them is looked at. */
static __always_inline void tl_unix_tell(__u32 *what)
{
	__sync_lock_test_and_set(what, 1);
}

/* Takes one of them: one thread only gets it. */
static __always_inline bool tl_unix_take(__u32 *what)
{
	return *(volatile __u32 *)what && __sync_lock_test_and_set(what, 0);
}

/* Moves `ahead` from one state to another, unless another thread has done so. */
static __always_inline bool tl_unix_moves(__u32 *ahead, __u32 from, __u32 to)
{
	return __sync_val_compare_and_swap(ahead, from, to) == from;
}

/* Reads the path that the socket is bound to. An accepted one has that of its listener. */
static __always_inline bool tl_unix_path(struct sock *sk, struct tl_text *text)
{
	struct unix_sock *unix = bpf_skc_to_unix_sock(sk);
	struct unix_address *address = unix ? unix->addr : NULL;
	__u32 length = address ? address->len : 0;

	if (length <= TL_PATH_AT)
		return false;
	length -= TL_PATH_AT;
	if (length > TL_PATH_MAX)
		length = TL_PATH_MAX;
	if (bpf_probe_read_kernel(text->path, TL_PATH_MAX, (void *)address->name + TL_PATH_AT))
		return false;
	/* a path ends with a 0 that the length may count */
	if (text->path[0] && length > 1 && !text->path[(length - 1) & 127 & (TL_PATH_MAX | 127)])
		length--;
	text->path_len = length;
	return true;
}

/*
 * Looks TL_LOOKS times whether the end parses what it is sending. Returns 1 when it does not and has
 * come as far as the other end has read; when it is in a message, that is true in any case. A global
 * function, which the verifier walks once.
 */
__noinline int tl_unix_look(struct tl_unix *end, __u32 read)
{
	volatile struct tl_unix *now = end;
	__u32 i;

	if (!now)
		return 0;
	for (i = 0; i < TL_LOOKS; i++) {
		if (now->flow.busy[TL_OUT])
			continue;
		if (now->flow.out.state != TL_HTTP_START ||
		    now->flow.exchange.flags & TL_EXCHANGE_ACTIVE ||
		    (__s32)(read - now->sent - now->parsed) <= 0)
			return 1;
	}
	return 0;
}

/*
 * Waits until the end has parsed what it is sending on another processor: that takes some
 * microseconds. `read`: the bytes that the current thread has read, all in all. False: these have
 * not been parsed.
 */
static __always_inline bool tl_unix_waits(struct tl_unix *end, __u32 read, __u32 times)
{
	__u32 i;

	for (i = 0; i < times; i++) {
		if (tl_unix_look(end, read))
			return true;
	}
	return false;
}

/*
 * What do the bytes look like the start of that the current thread sends or has received? A request
 * of enum tl_unix_protocol.
 */
__noinline int tl_unix_starts(void)
{
	struct tl_buffers buffers = {};
	struct tl_vector first;
	__u8 start[8] = {};
	__u32 n = sizeof(start);

	if (!tl_read_buffers(&buffers) || !buffers.length)
		return TL_UNIX_NONE;
	first.at = buffers.at;
	first.length = buffers.length;
	if (buffers.vector && !tl_read_vector(&buffers, 0, &first))
		return TL_UNIX_NONE;
	if (first.length < 4)
		return TL_UNIX_NONE;
	if (first.length < n)
		n = 4;
	if (bpf_probe_read_user(start, tl_length(n, sizeof(start)), (void *)first.at))
		return TL_UNIX_NONE;
	if (tl_begins_request(start, 4))
		return TL_UNIX_HTTP;
	return n == sizeof(start) && tl_begins_fastcgi(start) ? TL_UNIX_FASTCGI : TL_UNIX_NONE;
}

/* The socket that the current thread connects, or 0. */
static __always_inline __u64 tl_unix_connecting(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);

	return (__u64)tl_descriptor_sock(PT_REGS_PARM1_SYSCALL(regs));
}

#endif
