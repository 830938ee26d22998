/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* core/maps.h - new entries, and entries by the cookie of a socket. */
#ifndef THROUGHLINE_CORE_MAPS_H
#define THROUGHLINE_CORE_MAPS_H

#include "core/compat.h"

#define TL_ZERO_BYTES 2048

struct tl_zero_bytes {
	__u8 bytes[TL_ZERO_BYTES];
};

/* Always zero. New entries that are too large for the stack are copied from here. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_RDONLY_PROG);
	__type(key, __u32);
	__type(value, struct tl_zero_bytes);
} tl_zeros SEC(".maps");

/* Makes an entry of zeros. Its size is at most TL_ZERO_BYTES: the verifier checks that. */
static __always_inline long tl_insert_zeros(void *map, const void *key, __u64 flags)
{
	__u32 zero = 0;
	const void *zeros = bpf_map_lookup_elem(&tl_zeros, &zero);

	return zeros ? bpf_map_update_elem(map, key, zeros, flags) : -1;
}

/*
 * A socket's cookie, in a program that may read its fields; 0 where the kernel has not made one
 * yet.
 */
#define TL_COOKIE(sk) ((sk)->__sk_common.skc_cookie.counter)

/*
 * The entry of a socket, in a map with the socket's cookie as key (TL_LEGACY). `create`: makes an
 * entry of zeros where there is none.
 */
static __always_inline void *tl_kept(void *map, __u64 cookie, bool create)
{
	void *value = bpf_map_lookup_elem(map, &cookie);

	if (value || !create)
		return value;
	tl_insert_zeros(map, &cookie, BPF_NOEXIST);
	return bpf_map_lookup_elem(map, &cookie);
}

#endif
