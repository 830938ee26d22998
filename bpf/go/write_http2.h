/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * go/write_http2.h - a context in the header of a call of HTTP/2, and of gRPC.
 *
 *   http2.(*Framer).WriteHeaders              the fields are encoded, the frame is not yet made
 *
 * HPACK (RFC 7541, 6.2.2): literals without indexing, new names, no Huffman code.
 */
#ifndef THROUGHLINE_GO_WRITE_HTTP2_H
#define THROUGHLINE_GO_WRITE_HTTP2_H

#include "go/write.h"

#define TL_GO_FRAME_MAX 16384 /* every peer accepts this: SETTINGS_MAX_FRAME_SIZE */
#define TL_GO_BLOCK_MAX 2048 /* the largest header block that is copied */
#define TL_GO_COPY_BYTES 128 /* bytes copied at a time */

#define TL_FIELD_TRACEPARENT_BYTES (2 + 11 + 1 + TL_TRACEPARENT_VALUE_BYTES)
#define TL_FIELD_TRACESTATE_BYTES \
	(2 + 10 + 3) /* without the value; its length takes up to 3 bytes */

/* The parameter of WriteHeaders, http2.HeadersFrameParam: too large for registers. */
struct tl_go_frame {
	__u32 stream_id;
	__u32 _pad;
	struct tl_go_slice block;
	__u8 end_stream;
	__u8 end_headers;
	__u8 _pad2[6];
};

/* It is behind the return address. */
#define TL_GO_FRAME_AT(ctx) ((ctx)->sp + 8)

/* Finds the free part of the buffer that frames are written to. */
static __always_inline void tl_go_tail(const struct tl_go_binary *binary, __u64 moved, __u64 framer,
				       struct tl_go_slice *tail)
{
	__u64 writer[2] = {}, type, from, used;

	tail->len = 0;
	if (bpf_probe_read_user(writer, sizeof(writer), (void *)(framer + binary->framer_w)))
		return;
	type = tl_user_word(writer[0] + 8) - moved;
	if (binary->buffer_type && type == binary->buffer_type) {
		from = writer[1] + binary->buffer_buf;
		used = tl_user_word(writer[1] + binary->buffer_n);
	} else if (binary->grpc_buffer_type && type == binary->grpc_buffer_type) {
		if (binary->grpc_buffer_offset == TL_GO_UNKNOWN)
			return;
		used = tl_user_word(writer[1] + binary->grpc_buffer_offset);
		if (binary->grpc_buffer_buf != TL_GO_UNKNOWN)
			from = writer[1] + binary->grpc_buffer_buf;
		else if (binary->grpc_buffer_handle != TL_GO_UNKNOWN)
			from = tl_user_word(writer[1] + binary->grpc_buffer_handle);
		else
			return;
	} else {
		return;
	}
	if (!tl_go_read_slice(tail, from) || used > tail->len) {
		tail->len = 0;
		return;
	}
	tail->data += used;
	tail->len -= used;
	tail->cap = tail->len;
}

/* Copies `n` bytes of the process, up to TL_GO_BLOCK_MAX. */
static __always_inline bool tl_go_copy(__u64 to, __u64 from, __u64 n)
{
	__u8 bytes[TL_GO_COPY_BYTES];
	__u32 i, left;

	for (i = 0; i < TL_GO_BLOCK_MAX / TL_GO_COPY_BYTES; i++) {
		if (i * TL_GO_COPY_BYTES >= n)
			break;
		left = n - i * TL_GO_COPY_BYTES;
		left = tl_length(left < TL_GO_COPY_BYTES ? left : TL_GO_COPY_BYTES,
				 TL_GO_COPY_BYTES);
		if (bpf_probe_read_user(bytes, left, (void *)(from + i * TL_GO_COPY_BYTES)) ||
		    !tl_go_store(to + i * TL_GO_COPY_BYTES, bytes, left))
			return false;
	}
	return true;
}

/* Writes the field `traceparent` at `at`. */
static __always_inline bool tl_go_store_traceparent(__u64 at, const struct tl_go_exchange *go)
{
	__u8 field[TL_FIELD_TRACEPARENT_BYTES];

	__builtin_memcpy(field, "\x00\x0btraceparent", 13);
	field[13] = TL_TRACEPARENT_VALUE_BYTES;
	tl_write_traceparent_value(field + 14, &go->exchange.context);
	return tl_go_store(at, field, sizeof(field));
}

/* How many bytes the field `tracestate` takes, with a value of `n` bytes. */
static __always_inline __u32 tl_go_tracestate_bytes(__u32 n)
{
	return TL_FIELD_TRACESTATE_BYTES + n - (n < 127 ? 2 : n < 255 ? 1 : 0);
}

/*
 * Writes the field `tracestate` with a value of `n` bytes. The length is an integer with a prefix
 * of 7 bits.
 */
static __always_inline bool tl_go_store_tracestate(__u64 at, const struct tl_text *text, __u32 n)
{
	__u8 head[16]; /* TL_FIELD_TRACESTATE_BYTES, and one byte for the verifier */
	__u32 bytes = tl_go_tracestate_bytes(n) - n, rest = n - 127;

	__builtin_memcpy(head, "\x00\x0atracestate", 12);
	head[12] = n < 127 ? n : 127;
	head[13] = rest < 128 ? rest : rest | 0x80;
	head[14] = rest >> 7;
	return tl_go_store(at, head, tl_length(bytes, 16)) &&
	       tl_go_store(at + bytes, text->tracestate, tl_length(n, TL_TRACESTATE_MAX));
}

/*
 * Finds a place for a header block that is `more` bytes longer: the block itself may have room
 * behind it. Else it is copied to the free end of the connection's buffer; the frame is made
 * elsewhere before it is written there. Then `block` is the new block, and `*at` the place for the
 * new bytes. Returns 0, or the counter of the refusal.
 */
static __always_inline __u32 tl_go_place(const struct tl_go_binary *binary, __u64 moved,
					 __u64 framer, struct tl_go_slice *block, __u32 more,
					 __u64 *at)
{
	struct tl_go_slice tail;

	if (block->len + more > TL_GO_FRAME_MAX)
		return TL_GO_WRITE_NO_ROOM;
	*at = block->data + block->len;
	if (block->cap - block->len >= more) {
		block->len += more;
		return 0;
	}
	if (block->len > TL_GO_BLOCK_MAX)
		return TL_GO_WRITE_NO_ROOM;
	tl_go_tail(binary, moved, framer, &tail);
	if (tail.len < block->len + more)
		return TL_GO_WRITE_NO_ROOM;
	/* a page of a large buffer may not exist before the first write to it */
	if (!tl_go_copy(tail.data, block->data, block->len))
		return TL_GO_WRITE_FAILED;
	*at = tail.data + block->len;
	block->data = tail.data;
	block->len += more;
	block->cap = tail.cap;
	return 0;
}

/*
 * (*Framer).WriteHeaders(f, p HeadersFrameParam), called by clients and servers of HTTP/2 and of
 * gRPC
 */
SEC("uprobe")
int tl_go_write_h2(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_go_exchange *go;
	struct tl_go_writing writing;
	struct tl_go_frame frame = {};
	__u64 id, at, moved;
	__u32 index, n, more, refused;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	id = tl_unit_number(TL_GO_G(ctx), binary->g_goid);
	go = id ? tl_go_take(&tl_go_writers, tl_process_key(id),
			     1 << TL_GO_WRITING_STREAM | 1 << TL_GO_WRITING_FRAME, &writing) :
		  NULL;
	if (!go)
		return 0;
	if (writing.kind == TL_GO_WRITING_STREAM)
		writing.stream_id = tl_user_word(writing.object + binary->h2_stream_id);
	if (bpf_probe_read_user(&frame, sizeof(frame), (void *)TL_GO_FRAME_AT(ctx)) ||
	    frame.stream_id != writing.stream_id || frame.end_headers != 1 || !frame.block.len ||
	    frame.block.len > frame.block.cap || frame.block.cap > TL_GO_BUFFER_MAX) {
		tl_count(TL_GO_WRITE_MISMATCH);
		return 0;
	}
	moved = PT_REGS_IP(ctx) - binary->write_headers_at;
	n = tl_go_tracestate(&go->text);
	more = TL_FIELD_TRACEPARENT_BYTES + (n ? tl_go_tracestate_bytes(n) : 0);
	refused = tl_go_place(binary, moved, TL_GO_ARG1(ctx), &frame.block, more, &at);
	if (refused && n) {
		n = 0;
		refused = tl_go_place(binary, moved, TL_GO_ARG1(ctx), &frame.block,
				      TL_FIELD_TRACEPARENT_BYTES, &at);
	}
	if (refused) {
		tl_count(refused);
		return 0;
	}
	if (!tl_go_store_traceparent(at, go) ||
	    (n && !tl_go_store_tracestate(at + TL_FIELD_TRACEPARENT_BYTES, &go->text, n)) ||
	    !tl_go_store(TL_GO_FRAME_AT(ctx) + 8, &frame.block, sizeof(frame.block))) {
		tl_count(TL_GO_WRITE_FAILED);
		return 0;
	}
	tl_go_wrote(n);
	return 0;
}

#endif
