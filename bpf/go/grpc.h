/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * go/grpc.h - google.golang.org/grpc.
 *
 *   grpc.(*Server).handleStream               a goroutine handles a call
 *   transport.(*http2Server).writeStatus      it has; WriteStatus before 1.69
 *   grpc.(*csAttempt).newStream               a goroutine makes a call, or tries it again
 *   grpc.(*clientStream).finish               the end of the call, also of one that has failed
 *
 * The header of a call, which the library calls metadata, is read from the context that holds it.
 * To read it with its frame would need another probe, in another goroutine, whose arguments differ
 * from version to version.
 */
#ifndef THROUGHLINE_GO_GRPC_H
#define THROUGHLINE_GO_GRPC_H

#include "go/call.h"

#define TL_GRPC_ADDED_MAX \
	4 /* the most calls of metadata.AppendToOutgoingContext that are looked at */
#define TL_GRPC_WRAPPED_MAX 4 /* the most errors that wrap another one */

#define TL_GRPC_LAST 16 /* UNAUTHENTICATED */

/*
 * The value that a context, or one that it was made of, has for the key of this type: the second
 * word of an interface, or 0. A valueCtx has the context that it was made of, a key and a value, of
 * two words each.
 */
static __always_inline __u64 tl_go_grpc_metadata(__u64 context, __u64 key_type)
{
	__u64 words[6];
	int i;

	for (i = 0; i < TL_GO_CONTEXTS_MAX && context; i++) {
		if (bpf_probe_read_user(words, sizeof(words), (void *)context))
			return 0;
		if (words[2] == key_type)
			return words[5];
		context = words[1];
	}
	return 0;
}

/* Reads what was added to the metadata of a call: a slice of strings, names and values in turn. */
__noinline int tl_go_grpc_added(struct tl_go_exchange *go, __u64 slice)
{
	__u64 strings[2] = {}; /* address, number */
	__u32 length, names = 0;
	int i;

	if (!go || bpf_probe_read_user(strings, sizeof(strings), (void *)slice))
		return 0;
	for (i = 0; i < 8 && 2 * i + 1 < strings[1]; i++) {
		length = tl_go_name(strings[0] + 32 * i, &names);
		if (length)
			tl_go_value(go, length, strings[0] + 32 * i + 16, true);
	}
	return 0;
}

/* Is the connection a *tls.Conn, or does it hold one? */
static __always_inline bool tl_go_grpc_is_tls(const struct tl_go_binary *binary, __u64 moved,
					      __u64 connection)
{
	__u64 held[2];
	int i;

	for (i = 0; i < TL_GO_CONNECTIONS_MAX; i++) {
		if (bpf_probe_read_user(held, sizeof(held), (void *)connection))
			return false;
		if (tl_user_word(held[0] + 8) == binary->tls_conn_type + moved)
			return true;
		connection = held[1];
	}
	return false;
}

/* The net.Conn at `connection` carries the call. */
static __always_inline void tl_go_grpc_on(const struct tl_go_binary *binary, __u64 moved,
					  struct tl_go_exchange *go, __u64 connection)
{
	go->exchange.http_major = 2;
	go->exchange.flags |= TL_EXCHANGE_GRPC;
	if (tl_go_grpc_is_tls(binary, moved, connection))
		go->exchange.flags |= TL_EXCHANGE_TLS;
	tl_go_on(go, tl_go_socket(binary, moved, connection), false);
}

/* The code of a *google.rpc.Status; nil is OK. */
static __always_inline __u32 tl_go_grpc_code(const struct tl_go_binary *binary, __u64 proto)
{
	__u32 code = proto ? (__u32)tl_user_word(proto + binary->grpc_proto_code) : 0;

	/*
	 * a peer may send a code that gRPC does not have: that counts as UNKNOWN (gRPC's
	 * doc/statuscodes.md)
	 */
	return code <= TL_GRPC_LAST ? code : TL_GRPC_UNKNOWN;
}

/* The code of a *status.Status. */
static __always_inline __u32 tl_go_grpc_status(const struct tl_go_binary *binary, __u64 status)
{
	return status ? tl_go_grpc_code(binary, tl_user_word(status + binary->grpc_status_proto)) :
			0;
}

/*
 * The code that an error stands for. A call ends with io.EOF, which is the end of a successful
 * stream, or with a *status.Error, which fmt.Errorf may have wrapped.
 */
static __always_inline __u32 tl_go_grpc_error(const struct tl_go_binary *binary, __u64 moved,
					      __u64 table, __u64 error)
{
	char text[16] __attribute__((aligned(8))) = {};
	__u64 words[2] = {}, type;
	int i;

	if (!table)
		return 0;
	for (i = 0; i < TL_GRPC_WRAPPED_MAX; i++) {
		type = tl_user_word(table + 8) - moved;
		if (type == binary->grpc_error_type)
			break;
		if (type != binary->wrap_error_type ||
		    bpf_probe_read_user(words, sizeof(words),
					(void *)(error + binary->wrap_error_err)))
			break;
		table = words[0];
		error = words[1];
	}
	if (type == binary->grpc_error_type) {
		if (binary->grpc_error_proto != TL_GO_UNKNOWN)
			return tl_go_grpc_code(binary,
					       tl_user_word(error + binary->grpc_error_proto));
		return tl_go_grpc_status(binary, tl_user_word(error + binary->grpc_error_status));
	}
	if (bpf_probe_read_user(words, sizeof(words), (void *)error) || words[1] != 3 ||
	    bpf_probe_read_user(text, 3, (void *)words[0]) || !tl_go_is(text, (char[16]){ "EOF" }))
		return TL_GRPC_UNKNOWN;
	return 0;
}

/*
 * (*Server).handleStream(s, t ServerTransport, stream, …), in a goroutine of its own or in that of
 * a worker. In a server of net/http the transport has another type, and the call gets a span of
 * HTTP/2.
 */
SEC("uprobe")
int tl_go_rpc_serve(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_go_exchange *go;
	__u64 moved, stream, context;
	__u32 index;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	moved = PT_REGS_IP(ctx) - binary->grpc_serve_at;
	if (tl_user_word(TL_GO_ARG2(ctx) + 8) != binary->grpc_server_type + moved)
		return 0;
	go = tl_go_make(tl_go_object_key(TL_GO_ARG4(ctx)), TL_KIND_SERVER);
	if (!go)
		return 0;
	stream = TL_GO_ARG4(ctx);
	if (binary->grpc_stream != TL_GO_UNKNOWN)
		stream = tl_user_word(stream + binary->grpc_stream);
	tl_go_grpc_on(binary, moved, go, TL_GO_ARG3(ctx) + binary->grpc_server_conn);
	go->text.target_len =
		tl_go_string(go->text.target, TL_TARGET_MAX, stream + binary->grpc_stream_method);
	context = tl_user_word(stream + binary->grpc_stream_ctx + 8);
	tl_go_headers(binary, go, tl_go_grpc_metadata(context, binary->grpc_incoming_type + moved));
	tl_go_takes_up(binary, TL_GO_G(ctx), go, context);
	return 0;
}

/* (*http2Server).writeStatus(t, stream, status) */
SEC("uprobe")
int tl_go_rpc_reply(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	__u32 index;

	binary = tl_go_enter(ctx, &index);
	if (binary)
		tl_go_has_served(binary, TL_GO_G(ctx), tl_go_object_key(TL_GO_ARG2(ctx)),
				 tl_go_grpc_status(binary, TL_GO_ARG3(ctx)));
	return 0;
}

/* Reads the metadata that a call sends: a map, and slices with additions. */
static __always_inline void tl_go_grpc_outgoing(const struct tl_go_binary *binary,
						struct tl_go_exchange *go, __u64 metadata)
{
	__u64 raw[3]; /* the map; the slices' address and number */
	int i;

	if (!metadata || bpf_probe_read_user(raw, sizeof(raw), (void *)metadata))
		return;
	tl_go_headers(binary, go, raw[0]);
	for (i = 0; i < TL_GRPC_ADDED_MAX && i < raw[2]; i++)
		tl_go_grpc_added(go, raw[1] + 24 * i);
}

/* Reads the text of a call, and begins it. */
static __always_inline void tl_go_rpc_calls(const struct tl_go_binary *binary, __u64 moved,
					    __u64 goroutine, struct tl_go_exchange *go, __u64 call,
					    __u64 attempt)
{
	__u64 header = tl_user_word(call + binary->grpc_call_header), context, sent;

	go->text.target_len =
		tl_go_string(go->text.target, TL_TARGET_MAX, header + binary->grpc_header_method);
	go->text.host_len =
		tl_go_string(go->text.host, TL_HOST_MAX, header + binary->grpc_header_host);
	context = tl_user_word(call + binary->grpc_call_ctx + 8);
	/* with additions of a stats.Handler, as that of OpenTelemetry makes them */
	sent = context;
	if (binary->grpc_attempt_ctx != TL_GO_UNKNOWN)
		sent = tl_user_word(attempt + binary->grpc_attempt_ctx + 8);
	tl_go_grpc_outgoing(binary, go,
			    tl_go_grpc_metadata(sent, binary->grpc_outgoing_type + moved));
	tl_go_calls_with(binary, goroutine, go, context);
}

/* (*csAttempt).newStream(a), in the goroutine that makes the call: a.cs is the call */
SEC("uprobe")
int tl_go_rpc_call(struct pt_regs *ctx)
{
	struct tl_go_writing writing = { .kind = TL_GO_WRITING_CALL };
	__u64 moved, call, connection, transport[2] = {};
	const struct tl_go_binary *binary;
	struct tl_go_exchange *go;
	__u32 index;
	bool again;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	moved = PT_REGS_IP(ctx) - binary->grpc_call_at;
	call = tl_user_word(TL_GO_ARG1(ctx) + binary->grpc_attempt_stream);
	writing.exchange = tl_go_object_key(call);
	go = tl_go_find(writing.exchange);
	again = go && go->exchange.flags & TL_EXCHANGE_ACTIVE &&
		!(__u8)tl_user_word(call + binary->grpc_call_first);
	if (!again)
		go = tl_go_make(writing.exchange, TL_KIND_CLIENT);
	if (!go) {
		tl_go_writes(binary, TL_GO_G(ctx), NULL);
		return 0;
	}
	bpf_probe_read_user(transport, sizeof(transport),
			    (void *)(TL_GO_ARG1(ctx) + binary->grpc_attempt_transport));
	connection = 0;
	if (tl_user_word(transport[0] + 8) == binary->grpc_client_type + moved)
		connection = transport[1] + binary->grpc_client_conn;
	tl_go_grpc_on(binary, moved, go, connection);
	if (!again)
		tl_go_rpc_calls(binary, moved, TL_GO_G(ctx), go, call, TL_GO_ARG1(ctx));
	if (binary->writes & TL_GO_WRITES_GRPC) {
		writing.span = tl_go_span(go);
		writing.object = tl_user_word(tl_user_word(call + binary->grpc_call_header) +
					      binary->grpc_header_method);
		tl_go_writes(binary, TL_GO_G(ctx), tl_go_may_write(go, true) ? &writing : NULL);
	}
	return 0;
}

/* (*clientStream).finish(cs, err error): may be called several times, of which the first counts */
SEC("uprobe")
int tl_go_rpc_end(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	__u32 index;

	binary = tl_go_enter(ctx, &index);
	if (binary)
		tl_go_finish(tl_go_object_key(TL_GO_ARG1(ctx)),
			     tl_go_grpc_error(binary, PT_REGS_IP(ctx) - binary->grpc_finish_at,
					      TL_GO_ARG2(ctx), TL_GO_ARG3(ctx)),
			     TL_END_COMPLETE);
	return 0;
}

#endif
