/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * go/http2.h - HTTP/2, in net/http or golang.org/x/net.
 *
 *   http2.(*serverConn).runHandler              a goroutine handles a request
 *   http2.(*responseWriter).handlerDone         it has
 *   http2.(*clientStream).writeRequest          a goroutine makes a call
 *   http2.(*clientConnReadLoop).handleResponse  the header of the answer was read
 *   http2.(*clientStream).cleanupWriteRequest   the end of the call
 */
#ifndef THROUGHLINE_GO_HTTP2_H
#define THROUGHLINE_GO_HTTP2_H

#include "go/call.h"

/*
 * (*serverConn).runHandler(sc, rw *responseWriter, req *Request, handler), in a goroutine of its
 * own
 */
SEC("uprobe")
int tl_go_h2_serve(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_go_exchange *go;
	__u32 index;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	go = tl_go_make(tl_go_object_key(tl_user_word(TL_GO_ARG2(ctx) + binary->h2_writer_state)),
			TL_KIND_SERVER);
	if (!go)
		return 0;
	go->exchange.http_major = 2;
	tl_go_on(go,
		 tl_go_socket(binary, PT_REGS_IP(ctx) - binary->run_handler_at,
			      TL_GO_ARG1(ctx) + binary->h2_server_conn),
		 false);
	tl_go_serves(binary, TL_GO_G(ctx), go, TL_GO_ARG3(ctx));
	return 0;
}

/* (*responseWriter).handlerDone(w): its state is given back then */
SEC("uprobe")
int tl_go_h2_served(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	__u32 index, status;
	__u64 state;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	state = tl_user_word(TL_GO_ARG1(ctx) + binary->h2_writer_state);
	status = tl_user_word(state + binary->h2_state_status);
	tl_go_has_served(binary, TL_GO_G(ctx), tl_go_object_key(state), status ? status : 200);
	return 0;
}

/* (*clientStream).writeRequest(cs, req *Request, …), in a goroutine that the caller has started */
SEC("uprobe")
int tl_go_h2_call(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_go_writing writing = { .kind = TL_GO_WRITING_STREAM };
	struct tl_go_exchange *go;
	__u64 connection;
	__u32 index;
	bool seen;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	writing.exchange = tl_go_object_key(TL_GO_ARG1(ctx));
	writing.object = TL_GO_ARG1(ctx);
	go = tl_go_make(writing.exchange, TL_KIND_CLIENT);
	if (!go)
		return 0;
	connection = tl_user_word(TL_GO_ARG1(ctx) + binary->h2_stream_conn);
	if (tl_user_word(connection + binary->h2_client_tls_state))
		go->exchange.flags |= TL_EXCHANGE_TLS;
	go->exchange.http_major = 2;
	tl_go_on(go,
		 tl_go_socket(binary, PT_REGS_IP(ctx) - binary->write_request_at,
			      connection + binary->h2_client_conn),
		 false);
	seen = tl_go_calls_on(binary, TL_GO_G(ctx), go, TL_GO_ARG2(ctx));
	if (binary->writes & TL_GO_WRITES_HTTP2 && tl_go_may_write(go, seen)) {
		writing.span = tl_go_span(go);
		tl_go_writes(binary, TL_GO_G(ctx), &writing);
	}
	return 0;
}

/* The number that three digits stand for. */
static __always_inline __u16 tl_go_status(const char *digits)
{
	return (digits[0] - '0') * 100 + (digits[1] - '0') * 10 + digits[2] - '0';
}

/*
 * (*clientConnReadLoop).handleResponse(rl, cs *clientStream, f *MetaHeadersFrame): the fields of a
 * frame are a slice of names and values; names with a colon come first
 */
SEC("uprobe")
int tl_go_h2_answer(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_go_exchange *go;
	__u64 field[4], fields;
	char name[16] __attribute__((aligned(8))) = {};
	__u32 index;

	binary = tl_go_enter(ctx, &index);
	go = binary ? tl_go_find(tl_go_object_key(TL_GO_ARG2(ctx))) : NULL;
	if (!go)
		return 0;
	fields = tl_user_word(TL_GO_ARG3(ctx) + binary->h2_fields);
	if (bpf_probe_read_user(field, sizeof(field), (void *)fields) || field[1] != 7 ||
	    field[3] != 3 || bpf_probe_read_user(name, 7, (void *)field[0]) ||
	    !tl_go_is(name, (char[16]){ ":status" }) ||
	    bpf_probe_read_user(name, 3, (void *)field[2]))
		return 0;
	go->status = tl_go_status(name);
	return 0;
}

/* (*clientStream).cleanupWriteRequest(cs, err): the end, also of a call that has failed */
SEC("uprobe")
int tl_go_h2_called(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_go_exchange *go;
	__u32 index, status;

	binary = tl_go_enter(ctx, &index);
	go = binary ? tl_go_find(tl_go_object_key(TL_GO_ARG1(ctx))) : NULL;
	if (!go)
		return 0;
	status = go->status;
	tl_go_finish(tl_go_object_key(TL_GO_ARG1(ctx)), status,
		     status ? TL_END_COMPLETE : TL_END_CLOSED);
	return 0;
}

#endif
