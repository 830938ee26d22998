/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * wire/option.h - the TCP option that carries a context beside the bytes, and the peers that use
 * it.
 *
 * Kind 25, the layout of OpenTelemetry eBPF Instrumentation: trace id and span id, of a trace that
 * is sampled. For a trace that is not sampled the flags follow: others do not know an option of
 * that length and ignore it. `observe` reads it, `packets` writes it (docs/operator/packets.md).
 */
#ifndef THROUGHLINE_WIRE_OPTION_H
#define THROUGHLINE_WIRE_OPTION_H

#include "core/compat.h"

#define TL_OPTION_KIND 25
#define TL_OPTION_SAMPLED_BYTES 26
#define TL_OPTION_BYTES 27
#define TL_OPTION_SPACE 28 /* with padding: the header's length is a multiple of four */
#define TL_OPTION_WINDOW (1 << 20) /* bytes ahead of what was received that a segment may be */

struct tl_option {
	__u8 kind;
	__u8 len;
	__u8 trace_id[16];
	__u8 span_id[8];
	__u8 trace_flags;
} __attribute__((packed));

/* Networks that may send us contexts, and that we send contexts to. */
struct tl_peer_key {
	__u32 prefix; /* length of the prefix in bits */
	__u8 addr[16]; /* IPv4 as IPv4-mapped IPv6 */
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tl_peer_key);
	__type(value, __u8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_peers SEC(".maps");

static __always_inline bool tl_is_peer(const __u8 *address)
{
	struct tl_peer_key key = { .prefix = 128 };

	__builtin_memcpy(key.addr, address, 16);
	return bpf_map_lookup_elem(&tl_peers, &key);
}

static __always_inline bool tl_any(const __u8 *id, __u32 bytes)
{
	__u32 i, any = 0;

	for (i = 0; i < bytes; i++)
		any |= id[i];
	return any;
}

/*
 * Returns one more than the offset of the option of our kind in `len` bytes of TCP options. 0:
 * there is none.
 */
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

#endif
