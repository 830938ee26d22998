/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * go/write.h - writes into the memory of a Go program.
 *
 * Only memory that the program is about to write out, or that nothing uses yet: the free end of a buffer.
 * What is committed is one length, last; what fails before changes nothing that the program would look
 * at. A goroutine is stopped at the probe, and owns what it writes.
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
 * The call whose header is written, if it is the one that was meant and goes on; what is known of it, of
 * these kinds, is used up.
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

/* How much of tracestate goes with a call: all, or nothing. */
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
