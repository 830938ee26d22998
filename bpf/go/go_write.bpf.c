// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * go/go_write.bpf.c - group `go_write`: writes `traceparent` (and `tracestate`) into requests that Go programs
 * send, inside TLS too, before they are encrypted (docs/go.md, docs/decisions/0009-go-write.md).
 *
 *   net/http.(*transferWriter).writeHeader    HTTP/1: the request line is in the buffer, the rest follows
 *   http2.(*Framer).WriteHeaders              HTTP/2: the fields are encoded, the frame is not yet made
 *   transport.(*controlBuffer).executeAndPut  gRPC: the fields of a call go into the queue of a connection
 *   transport.(*loopyWriter).writeHeader      gRPC: another goroutine takes them out
 *
 * Which request is to be written into, and with which context, `go` has decided: tl_go_writing.
 *
 * Rules: only memory that the program is about to write out, or that nothing uses yet: the free end of
 * a buffer. What is committed is one length, last; what fails before changes nothing that the program
 * would look at. A goroutine is stopped at the probe, and owns what it writes.
 */
#include "go/calls.h"
#include "evidence/traceparent.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define TL_GO_FIELDS_MAX 64 /* of a call of gRPC, that are looked at for one of ours */
#define TL_GO_FIELD_BYTES 40 /* hpack.HeaderField: two strings and a bool */
#define TL_GO_PATH_AT (2 * TL_GO_FIELD_BYTES + 16) /* the value of the third field, `:path` */
#define TL_GO_FRAME_MAX 16384 /* what every peer takes: SETTINGS_MAX_FRAME_SIZE */
#define TL_GO_BLOCK_MAX 2048 /* of a header block that is copied */
#define TL_GO_COPY_BYTES 128 /* at once */
#define TL_GO_BUFFER_MAX (1 << 20) /* no buffer of a connection is larger */

/* HPACK (RFC 7541, 6.2.2): literals without indexing, new names, no Huffman code. */
#define TL_FIELD_TRACEPARENT_BYTES (2 + 11 + 1 + TL_TRACEPARENT_VALUE_BYTES)
#define TL_FIELD_TRACESTATE_BYTES (2 + 10 + 3) /* and the value; its length takes up to 3 */
#define TL_LINE_TRACESTATE_BYTES 14 /* HTTP/1: `tracestate: ` CR LF */

struct tl_go_slice {
	__u64 data;
	__u64 len;
	__u64 cap;
};

/* The parameter of WriteHeaders, http2.HeadersFrameParam: too large for registers. */
struct tl_go_frame {
	__u32 stream_id;
	__u32 _pad;
	struct tl_go_slice block;
	__u8 end_stream;
	__u8 end_headers;
	__u8 _pad2[6];
};

/* Behind the address to return to. */
#define TL_GO_FRAME_AT(ctx) ((ctx)->sp + 8)

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
	struct tl_go_exchange *exchange;

	if (!found || !(1 << found->kind & kinds))
		return NULL;
	*writing = *found;
	bpf_map_delete_elem(map, &key);
	exchange = tl_go_find(writing->exchange);
	if (!exchange || exchange->conn.role != TL_ROLE_CLIENT ||
	    !(exchange->conn.flags & TL_CONN_ACTIVE) || tl_go_span(exchange) != writing->span) {
		tl_count(TL_GO_WRITE_MISMATCH);
		return NULL;
	}
	return exchange;
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

/* --- HTTP/1 ----------------------------------------------------------------------------------- */

/*
 * The lines, at `at`. Returns how many bytes, of which there are up to `room`; 0 when a write failed.
 */
static __always_inline __u32 tl_go_store_lines(__u64 at, __u64 room,
					       const struct tl_go_exchange *exchange, bool *state)
{
	const struct tl_text *text = &exchange->text;
	__u32 n = tl_go_tracestate(text);
	__u8 line[TL_TRACEPARENT_BYTES];

	tl_write_traceparent(line, &exchange->conn);
	if (!tl_go_store(at, line, TL_TRACEPARENT_BYTES))
		return 0;
	if (!n || room < TL_TRACEPARENT_BYTES + TL_LINE_TRACESTATE_BYTES + n)
		return TL_TRACEPARENT_BYTES;
	at += TL_TRACEPARENT_BYTES;
	if (!tl_go_store(at, "tracestate: ", 12) ||
	    !tl_go_store(at + 12, text->tracestate, tl_length(n, TL_TRACESTATE_MAX)) ||
	    !tl_go_store(at + 12 + n, "\r\n", 2))
		return 0;
	*state = true;
	return TL_TRACEPARENT_BYTES + TL_LINE_TRACESTATE_BYTES + n;
}

/*
 * (*transferWriter).writeHeader(t, w io.Writer, …): the request line, Host and User-Agent are in the
 * buffer, at the end of a line. Others than the client's connections write headers, too: a CONNECT, a proxy
 * of its own an answer. So it has to be the header that was looked at, and a *bufio.Writer.
 */
SEC("uprobe")
int tl_go_write_h1(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_go_exchange *exchange;
	struct tl_go_writing writing;
	struct tl_go_slice buffer;
	bool state = false;
	__u64 used, socket;
	__u32 index, n;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	exchange = tl_go_take(&tl_go_written, tl_go_object_key(ctx->cx), 1 << TL_GO_WRITING_BUFFER,
			      &writing);
	if (!exchange)
		return 0;
	if (tl_go_word(ctx->bx + 8) != binary->buffer_type + ctx->ip - binary->write_header_at ||
	    tl_go_word(ctx->ax + binary->transfer_writer_header) != writing.object) {
		tl_count(TL_GO_WRITE_MISMATCH);
		return 0;
	}
	used = tl_go_word(ctx->cx + binary->buffer_n);
	if (!tl_go_read_slice(&buffer, ctx->cx + binary->buffer_buf) || used > buffer.len) {
		tl_count(TL_GO_WRITE_MISMATCH);
		return 0;
	}
	if (buffer.len - used < TL_TRACEPARENT_BYTES) {
		tl_count(TL_GO_WRITE_NO_ROOM);
		return 0;
	}
	n = tl_go_store_lines(buffer.data + used, buffer.len - used, exchange, &state);
	if (!n || !tl_go_store_word(ctx->cx + binary->buffer_n, used + n)) {
		tl_count(TL_GO_WRITE_FAILED);
		return 0;
	}
	/* it need not go beside the request any more */
	socket = exchange->conn.socket;
	if (socket)
		bpf_map_delete_elem(&tl_socket_outs, &socket);
	tl_go_wrote(state);
	return 0;
}

/* --- HTTP/2 ----------------------------------------------------------------------------------- */

/* What is free of the buffer that the frames are written to. */
static __always_inline void tl_go_tail(const struct tl_go_binary *binary, __u64 moved, __u64 framer,
				       struct tl_go_slice *tail)
{
	__u64 writer[2] = {}, type, from, used;

	tail->len = 0;
	if (bpf_probe_read_user(writer, sizeof(writer), (void *)(framer + binary->framer_w)))
		return;
	type = tl_go_word(writer[0] + 8) - moved;
	if (binary->buffer_type && type == binary->buffer_type) {
		from = writer[1] + binary->buffer_buf;
		used = tl_go_word(writer[1] + binary->buffer_n);
	} else if (binary->grpc_buffer_type && type == binary->grpc_buffer_type) {
		if (binary->grpc_buffer_offset == TL_GO_UNKNOWN)
			return;
		used = tl_go_word(writer[1] + binary->grpc_buffer_offset);
		if (binary->grpc_buffer_buf != TL_GO_UNKNOWN)
			from = writer[1] + binary->grpc_buffer_buf;
		else if (binary->grpc_buffer_handle != TL_GO_UNKNOWN)
			from = tl_go_word(writer[1] + binary->grpc_buffer_handle);
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

/* The field `traceparent`, at `at`. */
static __always_inline bool tl_go_store_traceparent(__u64 at, const struct tl_conn *conn)
{
	__u8 field[TL_FIELD_TRACEPARENT_BYTES];

	__builtin_memcpy(field, "\x00\x0btraceparent", 13);
	field[13] = TL_TRACEPARENT_VALUE_BYTES;
	tl_write_traceparent_value(field + 14, conn);
	return tl_go_store(at, field, sizeof(field));
}

/* How many bytes the field `tracestate` takes, with a value of `n`. */
static __always_inline __u32 tl_go_tracestate_bytes(__u32 n)
{
	return TL_FIELD_TRACESTATE_BYTES + n - (n < 127 ? 2 : n < 255 ? 1 : 0);
}

/* The field `tracestate`, with a value of `n` bytes, whose length is an integer with a prefix of 7 bits. */
static __always_inline bool tl_go_store_tracestate(__u64 at, const struct tl_text *text, __u32 n)
{
	__u8 head[16]; /* TL_FIELD_TRACESTATE_BYTES, and one for the verifier */
	__u32 bytes = tl_go_tracestate_bytes(n) - n, rest = n - 127;

	__builtin_memcpy(head, "\x00\x0atracestate", 12);
	head[12] = n < 127 ? n : 127;
	head[13] = rest < 128 ? rest : rest | 0x80;
	head[14] = rest >> 7;
	return tl_go_store(at, head, tl_length(bytes, 16)) &&
	       tl_go_store(at + bytes, text->tracestate, tl_length(n, TL_TRACESTATE_MAX));
}

/*
 * Is there a place for a header block that is `more` bytes longer? Where it is, behind itself, or where
 * what is written to the connection will be: the frame is made elsewhere from it before. The slice is
 * that of the new block then, and `*at` where the new bytes belong. Returns 0, or what to count.
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
	/* a page of a large buffer that nothing was written to yet is not there */
	if (!tl_go_copy(tail.data, block->data, block->len))
		return TL_GO_WRITE_FAILED;
	*at = tail.data + block->len;
	block->data = tail.data;
	block->len += more;
	block->cap = tail.cap;
	return 0;
}

/* (*Framer).WriteHeaders(f, p HeadersFrameParam), by clients and by servers, of HTTP/2 and of gRPC */
SEC("uprobe")
int tl_go_write_h2(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_go_exchange *exchange;
	struct tl_go_writing writing;
	struct tl_go_frame frame = {};
	__u64 id, at, moved;
	__u32 index, n, more, refused;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	id = tl_go_id(binary, ctx->r14);
	exchange = id ? tl_go_take(&tl_go_writers, tl_process_key(id),
				   1 << TL_GO_WRITING_STREAM | 1 << TL_GO_WRITING_FRAME, &writing) :
			NULL;
	if (!exchange)
		return 0;
	if (writing.kind == TL_GO_WRITING_STREAM)
		writing.stream_id = tl_go_word(writing.object + binary->h2_stream_id);
	if (bpf_probe_read_user(&frame, sizeof(frame), (void *)TL_GO_FRAME_AT(ctx)) ||
	    frame.stream_id != writing.stream_id || frame.end_headers != 1 || !frame.block.len ||
	    frame.block.len > frame.block.cap || frame.block.cap > TL_GO_BUFFER_MAX) {
		tl_count(TL_GO_WRITE_MISMATCH);
		return 0;
	}
	moved = ctx->ip - binary->write_headers_at;
	n = tl_go_tracestate(&exchange->text);
	more = TL_FIELD_TRACEPARENT_BYTES + (n ? tl_go_tracestate_bytes(n) : 0);
	refused = tl_go_place(binary, moved, ctx->ax, &frame.block, more, &at);
	if (refused && n) {
		n = 0;
		refused = tl_go_place(binary, moved, ctx->ax, &frame.block,
				      TL_FIELD_TRACEPARENT_BYTES, &at);
	}
	if (refused) {
		tl_count(refused);
		return 0;
	}
	if (!tl_go_store_traceparent(at, &exchange->conn) ||
	    (n && !tl_go_store_tracestate(at + TL_FIELD_TRACEPARENT_BYTES, &exchange->text, n)) ||
	    !tl_go_store(TL_GO_FRAME_AT(ctx) + 8, &frame.block, sizeof(frame.block))) {
		tl_count(TL_GO_WRITE_FAILED);
		return 0;
	}
	tl_go_wrote(n);
	return 0;
}

/* --- gRPC ------------------------------------------------------------------------------------- */

/* Is the name of a field `traceparent` or `tracestate`, or can it not be read? They are in lower case. */
__noinline int tl_go_field_is_ours(__u64 field)
{
	char name[16] __attribute__((aligned(8))) = {};
	__u64 string[2] = {};

	if (bpf_probe_read_user(string, sizeof(string), (void *)field))
		return 1;
	if (string[1] == 11)
		return bpf_probe_read_user(name, 11, (void *)string[0]) ||
		       tl_go_is(name, (char[16]){ "traceparent" });
	if (string[1] == 10)
		return bpf_probe_read_user(name, 10, (void *)string[0]) ||
		       tl_go_is(name, (char[16]){ "tracestate" });
	return 0;
}

/* Is it proven that a slice of fields, of three words and more each, has none of ours? */
static __always_inline bool tl_go_fields_lack_ours(const struct tl_go_slice *fields)
{
	__u32 i;

	if (fields->len > TL_GO_FIELDS_MAX)
		return false;
	for (i = 0; i < TL_GO_FIELDS_MAX && i < fields->len; i++)
		if (tl_go_field_is_ours(fields->data + TL_GO_FIELD_BYTES * i))
			return false;
	return true;
}

/*
 * (*controlBuffer).executeAndPut(c, f, it): by clients and by servers, for all that they send. What stood
 * for fields of this address is over.
 */
SEC("uprobe")
int tl_go_write_put(struct pt_regs *ctx)
{
	struct tl_go_writing fields_of = { .kind = TL_GO_WRITING_FIELDS };
	const struct tl_go_binary *binary;
	const struct tl_go_writing *call;
	struct tl_go_slice fields;
	__u64 id, key, fields_key;
	__u32 index;

	binary = tl_go_enter(ctx, &index);
	if (!binary || !ctx->cx ||
	    tl_go_word(ctx->cx + 8) != binary->grpc_headers_type + ctx->ip - binary->grpc_put_at)
		return 0;
	if (!tl_go_read_slice(&fields, ctx->di + binary->grpc_headers_hf)) {
		tl_count(TL_GO_WRITE_MISMATCH);
		return 0;
	}
	fields_key = tl_go_object_key(fields.data);
	bpf_map_delete_elem(&tl_go_written, &fields_key);
	if (!tl_go_word(ctx->di + binary->grpc_headers_init))
		return 0; /* of an answer */
	id = tl_go_id(binary, ctx->r14);
	key = tl_process_key(id);
	call = id ? bpf_map_lookup_elem(&tl_go_writers, &key) : NULL;
	if (!call || call->kind != TL_GO_WRITING_CALL)
		return 0;
	/* what fetches credentials for a call may make another call, in the same goroutine */
	if (tl_go_word(fields.data + TL_GO_PATH_AT) != call->object) {
		tl_count(TL_GO_WRITE_MISMATCH);
		return 0;
	}
	if (!tl_go_fields_lack_ours(&fields)) {
		tl_count(TL_GO_WRITE_UNPROVEN);
		return 0;
	}
	/* not used up: where the connection has no room for a stream it is put again */
	fields_of.exchange = call->exchange;
	fields_of.span = call->span;
	fields_of.object = ctx->ax;
	bpf_map_update_elem(&tl_go_written, &fields_key, &fields_of, BPF_ANY);
	return 0;
}

/* (*loopyWriter).writeHeader(l, streamID, endStream, hf, onWrite): WriteHeaders follows */
SEC("uprobe")
int tl_go_write_rpc(struct pt_regs *ctx)
{
	struct tl_go_writing frame = { .kind = TL_GO_WRITING_FRAME }, writing;
	const struct tl_go_binary *binary;
	__u32 index;
	__u64 id, key;

	binary = tl_go_enter(ctx, &index);
	if (!binary || !tl_go_take(&tl_go_written, tl_go_object_key(ctx->di),
				   1 << TL_GO_WRITING_FIELDS, &writing))
		return 0;
	id = tl_go_id(binary, ctx->r14);
	if (!id || tl_go_word(ctx->ax + binary->grpc_loopy_cbuf) != writing.object) {
		tl_count(TL_GO_WRITE_MISMATCH);
		return 0;
	}
	frame.exchange = writing.exchange;
	frame.span = writing.span;
	frame.stream_id = ctx->bx;
	key = tl_process_key(id);
	bpf_map_update_elem(&tl_go_writers, &key, &frame, BPF_ANY);
	return 0;
}
