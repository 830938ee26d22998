/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* go/memory.h - what is read from the memory of a Go program. */
#ifndef THROUGHLINE_GO_MEMORY_H
#define THROUGHLINE_GO_MEMORY_H

#include "core/process.h"
#include "go/process.h"

#define TL_GO_CONNECTIONS_MAX 4 /* the most connections that hold one another */

/* The key of an object, which is at least 16 bytes large. */
static __always_inline __u64 tl_go_object_key(__u64 address)
{
	return tl_process_key(address >> 4);
}

/* Are two names the same? Both are 16 bytes long, filled with zeros. */
static __always_inline bool tl_go_is(const char *a, const char *b)
{
	return *(const __u64 *)a == *(const __u64 *)b &&
	       *(const __u64 *)(a + 8) == *(const __u64 *)(b + 8);
}

/*
 * Reads up to `max` bytes (a power of two) of the string whose header is at `address`. Returns the
 * string's length.
 */
static __always_inline __u32 tl_go_string(char *to, __u32 max, __u64 address)
{
	__u64 string[2] = {}; /* address, length */
	__u32 n;

	if (bpf_probe_read_user(string, sizeof(string), (void *)address) || !string[1] ||
	    string[1] > 65535)
		return 0;
	n = string[1] < max ? string[1] : max;
	if (bpf_probe_read_user(to, tl_length(n, max), (void *)string[0]))
		return 0;
	return string[1];
}

/*
 * The TCP socket of a file descriptor of the current process, or NULL. The pointer may only be read
 * through.
 */
static __always_inline struct sock *tl_go_sock(__u32 fd)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **files = BPF_CORE_READ(table, fd), *file = NULL;
	struct socket *socket;
	struct sock *sk;

	if (fd >= BPF_CORE_READ(table, max_fds) ||
	    bpf_probe_read_kernel(&file, sizeof(file), files + fd) || !file)
		return NULL;
	socket = BPF_CORE_READ(file, private_data);
	/* only the private data of a socket points back to the file */
	if (!socket || BPF_CORE_READ(socket, file) != file)
		return NULL;
	sk = BPF_CORE_READ(socket, sk);
	return BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP ? sk : NULL;
}

/*
 * The socket of a connection, or NULL. `connection` is the address of a net.Conn. Its object may
 * begin with another net.Conn, as that of a *tls.Conn does. `moved`: the distance of the program
 * from the address it was linked for.
 */
static __always_inline struct sock *tl_go_socket(const struct tl_go_binary *binary, __u64 moved,
						 __u64 connection)
{
	__u64 held[2]; /* an interface: its type, and the object's address */
	int i;

	for (i = 0; i < TL_GO_CONNECTIONS_MAX; i++) {
		if (bpf_probe_read_user(held, sizeof(held), (void *)connection))
			return NULL;
		if (tl_user_word(held[0] + 8) == binary->tcp_conn_type + moved)
			return tl_go_sock(
				(__u32)tl_user_word(tl_user_word(held[1]) + binary->fd_sysfd));
		connection = held[1];
	}
	return NULL;
}

static __always_inline __u64 tl_go_cookie(struct sock *sk)
{
	return sk ? BPF_CORE_READ(sk, __sk_common.skc_cookie.counter) : 0;
}

#endif
