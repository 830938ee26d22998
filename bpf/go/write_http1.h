/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * go/write_http1.h - a context in the header of a call of HTTP/1.
 *
 *   net/http.(*transferWriter).writeHeader    the request line is in the buffer, the rest follows
 */
#ifndef THROUGHLINE_GO_WRITE_HTTP1_H
#define THROUGHLINE_GO_WRITE_HTTP1_H

#include "go/write.h"

#define TL_LINE_TRACESTATE_BYTES 14 /* `tracestate: ` CR LF */

/*
 * Writes the lines at `at`, where there is room for `room` bytes. Returns how many it has written,
 * 0 when a write has failed.
 */
static __always_inline __u32 tl_go_store_lines(__u64 at, __u64 room,
					       const struct tl_go_exchange *go, bool *state)
{
	const struct tl_text *text = &go->text;
	__u32 n = tl_go_tracestate(text);
	__u8 line[TL_TRACEPARENT_BYTES];

	tl_write_traceparent(line, &go->exchange.context);
	if (!tl_go_store(at, line, TL_TRACEPARENT_BYTES))
		return 0;
	if (!n || room < TL_TRACEPARENT_BYTES + TL_LINE_TRACESTATE_BYTES + n)
		return TL_TRACEPARENT_BYTES;
	at += TL_TRACEPARENT_BYTES;
	if (!tl_go_store(at, "tracestate: ", 12) ||
	    !tl_go_store(at + 12, go->text.tracestate, tl_length(n, TL_TRACESTATE_MAX)) ||
	    !tl_go_store(at + 12 + n, "\r\n", 2))
		return 0;
	*state = true;
	return TL_TRACEPARENT_BYTES + TL_LINE_TRACESTATE_BYTES + n;
}

/*
 * (*transferWriter).writeHeader(t, w io.Writer, …): the buffer has the request line, Host and
 * User-Agent, and ends with a complete line. Other code than the client's connections writes
 * headers, too: a CONNECT, or the answer of a proxy. So the header must be the one that was read,
 * and the writer a *bufio.Writer.
 */
SEC("uprobe")
int tl_go_write_h1(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_go_exchange *go;
	struct tl_go_writing writing;
	struct tl_go_slice buffer;
	bool state = false;
	__u64 used, socket;
	__u32 index, n;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	go = tl_go_take(&tl_go_written, tl_go_object_key(TL_GO_ARG3(ctx)),
			1 << TL_GO_WRITING_BUFFER, &writing);
	if (!go)
		return 0;
	if (tl_user_word(TL_GO_ARG2(ctx) + 8) !=
		    binary->buffer_type + PT_REGS_IP(ctx) - binary->write_header_at ||
	    tl_user_word(TL_GO_ARG1(ctx) + binary->transfer_writer_header) != writing.object) {
		tl_count(TL_GO_WRITE_MISMATCH);
		return 0;
	}
	used = tl_user_word(TL_GO_ARG3(ctx) + binary->buffer_n);
	if (!tl_go_read_slice(&buffer, TL_GO_ARG3(ctx) + binary->buffer_buf) || used > buffer.len) {
		tl_count(TL_GO_WRITE_MISMATCH);
		return 0;
	}
	if (buffer.len - used < TL_TRACEPARENT_BYTES) {
		tl_count(TL_GO_WRITE_NO_ROOM);
		return 0;
	}
	n = tl_go_store_lines(buffer.data + used, buffer.len - used, go, &state);
	if (!n || !tl_go_store_word(TL_GO_ARG3(ctx) + binary->buffer_n, used + n)) {
		tl_count(TL_GO_WRITE_FAILED);
		return 0;
	}
	/* it need not be sent beside the request any more */
	socket = go->endpoints.socket;
	if (socket)
		bpf_map_delete_elem(&tl_socket_outs, &socket);
	tl_go_wrote(state);
	return 0;
}

#endif
