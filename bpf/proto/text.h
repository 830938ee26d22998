/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* proto/text.h - what is kept of a request's text. */
#ifndef THROUGHLINE_PROTO_TEXT_H
#define THROUGHLINE_PROTO_TEXT_H

#include "core/abi.h"
#include "core/maps.h"

struct tl_text {
#ifdef TL_LEGACY
	__u64 cookie; /* the key of this entry */
#endif
	__u8 trace_id[16]; /* the ids in `traceparent`: see tl_parse_traceparent() */
	__u8 parent_span_id[8];
	char traceparent[64];
	char host[TL_HOST_MAX];
	char target[TL_TARGET_MAX];
	char method[TL_METHOD_MAX];
	char tracestate[TL_TRACESTATE_MAX];
	char path[TL_PATH_MAX]; /* of a Unix socket */
	__u16 path_len;
	__u16 _pad2;
	__u16 traceparent_len;
	__u16 host_len;
	__u16 target_len; /* on the wire */
	__u16 method_len;
	__u16 tracestate_len;
	__u16 _pad[3];
} __attribute__((aligned(8))); /* aligned, so that it is copied in words */

/* What is known of `traceparent` and `tracestate` of a request. */
enum tl_header_flags {
	TL_HEADER_HAS_TRACEPARENT = 1 << 4,
	TL_HEADER_BAD_TRACEPARENT = 1 << 5, /* repeated, folded, too long */
	TL_HEADER_HAS_TRACESTATE = 1 << 6,
	TL_HEADER_BAD_TRACESTATE = 1 << 7,
};

struct {
	TL_SOCKET_MAP(struct tl_text);
} tl_texts SEC(".maps");

/*
 * Parameters of global functions, which the verifier walks once and not for each call. It trusts a
 * pointer parameter as far as its type goes. Older kernels allow no pointer parameters: there the
 * function gets the cookie of the socket, and looks up again.
 */
#ifdef TL_LEGACY
/* An object whose flows are not sockets has a map of its own: it defines TL_TEXTS before this. */
#ifndef TL_TEXTS
#define TL_TEXTS tl_texts
#endif

static __always_inline struct tl_text *tl_make_text(__u64 cookie)
{
	struct tl_text *text = tl_kept(&TL_TEXTS, cookie, true);

	if (text)
		text->cookie = cookie;
	return text;
}

#define TL_TEXT_FIND(sk, cookie) tl_kept(&TL_TEXTS, cookie, false)
#define TL_TEXT_MAKE(sk, cookie) tl_make_text(cookie)

#define TL_TEXT __u64 cookie
#define TL_GIVE_TEXT(text) (text)->cookie
#define TL_TAKE_TEXT(text) struct tl_text *text = TL_TEXT_FIND(, cookie)
#else
#define TL_TEXT_FIND(sk, cookie) bpf_sk_storage_get(&tl_texts, sk, NULL, 0)
#define TL_TEXT_MAKE(sk, cookie) \
	bpf_sk_storage_get(&tl_texts, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE)

#define TL_TEXT struct tl_text *text
#define TL_GIVE_TEXT(text) text
#define TL_TAKE_TEXT(text)
#endif

/* The code of a known method: up to eight letters, compared as a little-endian word. */
static __always_inline __u8 tl_method_code(const struct tl_text *text)
{
	__u64 word = *(__u64 *)text->method;
	__u32 len = text->method_len;

	if (!len || len > 7)
		return TL_METHOD_OTHER;
	word &= ~0ULL >> (64 - 8 * len);
	switch (word) {
	case 0x544547ULL:
		return TL_METHOD_GET;
	case 0x44414548ULL:
		return TL_METHOD_HEAD;
	case 0x54534f50ULL:
		return TL_METHOD_POST;
	case 0x545550ULL:
		return TL_METHOD_PUT;
	case 0x4554454c4544ULL:
		return TL_METHOD_DELETE;
	case 0x5443454e4e4f43ULL:
		return TL_METHOD_CONNECT;
	case 0x534e4f4954504fULL:
		return TL_METHOD_OPTIONS;
	case 0x4543415254ULL:
		return TL_METHOD_TRACE;
	case 0x4843544150ULL:
		return TL_METHOD_PATCH;
	}
	return TL_METHOD_OTHER;
}

/* Is the text that could not be parsed the preface of HTTP/2? Then what follows is not HTTP/1. */
static __always_inline bool tl_is_http2(const struct tl_text *text)
{
	return text->method_len == 3 && text->method[0] == 'P' && text->method[1] == 'R' &&
	       text->method[2] == 'I';
}

#endif
