/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * go/write.h - writes into the memory of a Go program.
 *
 * Only memory is written that the program is about to send, or that is not used yet: the free end
 * of a buffer. The last write is one length, which makes the rest valid: a failure before it
 * changes nothing that the program reads. The goroutine is stopped at the probe, and owns the
 * memory.
 */
#ifndef THROUGHLINE_GO_WRITE_H
#define THROUGHLINE_GO_WRITE_H

#include "go/writing.h"

#define TL_GO_BUFFER_MAX (1 << 20) /* no buffer of a connection is larger */

struct tl_go_slice {
	__u64 data;
	__u64 len;
	__u64 cap;
};

static __always_inline bool tl_go_read_slice(struct tl_go_slice *slice, __u64 address)
{
	return !bpf_probe_read_user(slice, sizeof(*slice), (void *)address) &&
	       slice->len <= slice->cap && slice->cap <= TL_GO_BUFFER_MAX;
}

static __always_inline bool tl_go_store(__u64 to, const void *from, __u32 n)
{
	return !bpf_probe_write_user((void *)to, from, n);
}

static __always_inline bool tl_go_store_word(__u64 to, __u64 word)
{
	return tl_go_store(to, &word, sizeof(word));
}

/*
 * Takes the entry at `key`, if it is of one of these kinds. Returns the call whose header is
 * written, or NULL where it is another one or has ended.
 */
static __always_inline struct tl_go_exchange *tl_go_take(void *map, __u64 key, __u32 kinds,
							 struct tl_go_writing *writing)
{
	const struct tl_go_writing *found = bpf_map_lookup_elem(map, &key);
	struct tl_go_exchange *go;

	if (!found || !(1 << found->kind & kinds))
		return NULL;
	*writing = *found;
	bpf_map_delete_elem(map, &key);
	go = tl_go_find(writing->exchange);
	if (!go || go->exchange.kind != TL_KIND_CLIENT ||
	    !(go->exchange.flags & TL_EXCHANGE_ACTIVE) || tl_go_span(go) != writing->span) {
		tl_count(TL_GO_WRITE_MISMATCH);
		return NULL;
	}
	return go;
}

/* The bytes of tracestate that are written with a call: all, or none. */
static __always_inline __u32 tl_go_tracestate(const struct tl_text *text)
{
	return text->tracestate_len <= TL_TRACESTATE_MAX ? text->tracestate_len : 0;
}

static __always_inline void tl_go_wrote(bool state)
{
	tl_count(TL_GO_WRITTEN);
	if (state)
		tl_count(TL_INJECTED_TRACESTATE);
}

#endif
