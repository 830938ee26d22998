/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * runtimes/descriptor.h - the request that a connection of the current process serves, by the
 * connection's file descriptor.
 *
 * A program keeps the descriptor of a connection in its memory: there it can be read. The kernel says
 * which socket is behind it now.
 */
#ifndef THROUGHLINE_RUNTIMES_DESCRIPTOR_H
#define THROUGHLINE_RUNTIMES_DESCRIPTOR_H

#include "core/maps.h"
#include "core/process.h"
#include "trace/request.h"

#define TL_S_IFMT 00170000
#define TL_S_IFSOCK 0140000

/* What a connection serves: keys of tl_requests. */
struct tl_served {
	__u64 request; /* that was read on it last */
	__u64 before; /* the one before that, or 0 */
};

/*
 * By socket cookie. Kept for processes whose runtime asks by connection (evidence/work.h). Where
 * there is no entry, the request has ended.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct tl_served);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_serving SEC(".maps");

/* The request `key` was read on the connection `socket` (cookie; 0: it is not known). */
static __always_inline void tl_serves(__u64 socket, __u64 key)
{
	struct tl_served fresh = { .request = key };
	const struct tl_served *served;

	if (!socket)
		return;
	served = bpf_map_lookup_elem(&tl_serving, &socket);
	if (served)
		fresh.before = served->request == key ? served->before : served->request;
	bpf_map_update_elem(&tl_serving, &socket, &fresh, BPF_ANY);
}

/*
 * The connection `socket`, or its request, has ended: removes its entry from `map`, of whose values a
 * request is the first part. Inside of TLS the request may outlast the connection.
 */
static __always_inline void tl_serves_no_more(void *map, __u64 socket)
{
	const __u64 *served = bpf_map_lookup_elem(map, &socket);
	__u64 key = served ? *served : 0;

	if (key && !bpf_map_lookup_elem(&tl_requests, &key))
		bpf_map_delete_elem(map, &socket);
}

/* The file behind a descriptor of the current process, or NULL. */
static __always_inline struct file *tl_descriptor_file(__u32 number)
{
	struct files_struct *files = TL_READ(tl_current_task(), files);
	struct fdtable *table = BPF_CORE_READ(files, fdt);
	struct file **open, *file = NULL;

	if (number >= BPF_CORE_READ(table, max_fds))
		return NULL;
	open = BPF_CORE_READ(table, fd);
	bpf_probe_read_kernel(&file, sizeof(file), open + number);
	return file;
}

/* The socket behind a descriptor of the current process, or 0. */
static __always_inline struct sock *tl_descriptor_sock(__u32 number)
{
	struct file *file = tl_descriptor_file(number);
	struct socket *socket;

	if (!file)
		return NULL;
	if ((BPF_CORE_READ(file, f_inode, i_mode) & TL_S_IFMT) != TL_S_IFSOCK)
		return NULL;
	socket = BPF_CORE_READ(file, private_data);
	return BPF_CORE_READ(socket, sk);
}

/*
 * The cookie of the socket behind a descriptor of the current process. 0: it is none, or no program
 * has asked for its cookie yet. A global function, to have a stack of its own.
 */
__noinline __u64 tl_descriptor_socket(__u32 number)
{
	struct sock *sk = tl_descriptor_sock(number);

	return sk ? BPF_CORE_READ(sk, __sk_common.skc_cookie.counter) : 0;
}

/* The request that was read last on the connection with this descriptor: key of tl_requests, or 0. */
static __always_inline __u64 tl_descriptor_request(__u32 number)
{
	__u64 socket = tl_descriptor_socket(number);
	const struct tl_served *served;

	served = socket ? bpf_map_lookup_elem(&tl_serving, &socket) : NULL;
	return served ? served->request : 0;
}

#endif
