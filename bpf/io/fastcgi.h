/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * io/fastcgi.h - FastCGI on TCP: what is kept of a connection besides its flow. HTTP connections, which
 * are many more, have none of it.
 */
#ifndef THROUGHLINE_IO_FASTCGI_H
#define THROUGHLINE_IO_FASTCGI_H

#include "trace/fastcgi.h"

struct tl_fastcgi_both {
	struct tl_fastcgi of[2]; /* by enum tl_direction */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct tl_fastcgi_both);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_fastcgi SEC(".maps");

/* Makes what is kept of the connection, as before its first byte. False: there is no room. */
static __always_inline bool tl_fastcgi_make(struct bpf_sock *sk)
{
	struct tl_fastcgi_both *both =
		bpf_sk_storage_get(&tl_fastcgi, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (!both) {
		tl_count(TL_FULL_STORAGE);
		return false;
	}
	__builtin_memset(both, 0, sizeof(*both));
	return true;
}

/* What is kept of one direction, or NULL. */
static __always_inline struct tl_fastcgi *tl_fastcgi_find(struct bpf_sock *sk, __u32 direction)
{
	struct tl_fastcgi_both *both = bpf_sk_storage_get(&tl_fastcgi, sk, NULL, 0);

	return both ? &both->of[direction & 1] : NULL;
}

#endif
