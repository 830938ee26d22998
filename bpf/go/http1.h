/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * go/http1.h - HTTP/1 of net/http: requests inside of TLS, and claims for calls in plaintext.
 *
 *   net/http.serverHandler.ServeHTTP            a goroutine handles a request
 *   net/http.(*response).finishRequest          it has
 *   net/http.(*persistConn).roundTrip           a goroutine takes a connection for a call
 *   net/http.readTransfer                       the header of the answer was read
 *
 * `observe` reads plaintext HTTP/1: for a call in it a claim is made (trace/claim.h).
 */
#ifndef THROUGHLINE_GO_HTTP1_H
#define THROUGHLINE_GO_HTTP1_H

#include "go/call.h"

/*
 * serverHandler.ServeHTTP(handler, rw ResponseWriter, req *Request); rw is a *response, or a type
 * of HTTP/2
 */
SEC("uprobe")
int tl_go_serve(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_go_exchange *go;
	struct tl_unit *goroutine;
	__u64 connection;
	__u32 index;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	goroutine = tl_go_works(binary, TL_GO_G(ctx));
	if (goroutine) {
		tl_go_give_context(tl_go_context(binary, TL_GO_ARG4(ctx)), goroutine->request);
		return 0;
	}
	if (!tl_user_word(TL_GO_ARG4(ctx) + binary->request_tls) ||
	    (__u32)tl_user_word(TL_GO_ARG4(ctx) + binary->request_proto_major) != 1)
		return 0;
	go = tl_go_make(tl_go_object_key(TL_GO_ARG3(ctx)), TL_KIND_SERVER);
	if (!go)
		return 0;
	go->exchange.http_minor = 1;
	connection = tl_user_word(TL_GO_ARG3(ctx) + binary->response_conn) + binary->conn_rwc;
	tl_go_on(go, tl_go_socket(binary, PT_REGS_IP(ctx) - binary->serve_at, connection), true);
	tl_go_serves(binary, TL_GO_G(ctx), go, TL_GO_ARG4(ctx));
	return 0;
}

/* (*response).finishRequest(w), also for plaintext; a status that was not set is 200 */
SEC("uprobe")
int tl_go_served(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	__u32 index, status;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	status = tl_user_word(TL_GO_ARG1(ctx) + binary->response_status);
	tl_go_has_served(binary, TL_GO_G(ctx), tl_go_object_key(TL_GO_ARG1(ctx)),
			 status ? status : 200);
	return 0;
}

/* (*persistConn).roundTrip(pc, req *transportRequest), which begins with its *Request */
SEC("uprobe")
int tl_go_round_trip(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_go_exchange *go;
	struct tl_go_writing writing = { .kind = TL_GO_WRITING_BUFFER };
	struct sock *sk;
	__u64 socket, request, writer = 0;
	__u8 evidence;
	__u32 index;
	bool seen;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	if (binary->writes & TL_GO_WRITES_HTTP1) {
		/* removes an earlier entry for this address */
		writer = tl_go_object_key(tl_user_word(TL_GO_ARG1(ctx) + binary->persist_conn_bw));
		bpf_map_delete_elem(&tl_go_written, &writer);
	}
	/* several calls may wait for one connection: which call gets it is not known yet */
	if (binary->persist_conn_is_client_conn != TL_GO_UNKNOWN &&
	    (__u8)tl_user_word(TL_GO_ARG1(ctx) + binary->persist_conn_is_client_conn)) {
		tl_count(TL_GO_CLIENT_CONN);
		return 0;
	}
	request = tl_user_word(TL_GO_ARG2(ctx));
	sk = tl_go_socket(binary, PT_REGS_IP(ctx) - binary->round_trip_at,
			  TL_GO_ARG1(ctx) + binary->persist_conn_conn);
	if (tl_user_word(TL_GO_ARG1(ctx) + binary->persist_conn_tls_state)) {
		writing.exchange =
			tl_go_object_key(tl_user_word(TL_GO_ARG1(ctx) + binary->persist_conn_br));
		go = tl_go_make(writing.exchange, TL_KIND_CLIENT);
		if (!go)
			return 0;
		go->exchange.flags |= TL_EXCHANGE_TLS;
		go->exchange.http_minor = 1;
		tl_go_on(go, sk, true);
		seen = tl_go_calls_on(binary, TL_GO_G(ctx), go, request);
		tl_go_sends(go);
		if (binary->writes & TL_GO_WRITES_HTTP1 && tl_go_may_write(go, seen)) {
			writing.span = tl_go_span(go);
			writing.object = tl_user_word(request + binary->request_header);
			bpf_map_update_elem(&tl_go_written, &writer, &writing, BPF_ANY);
		}
		return 0;
	}
	socket = tl_go_cookie(sk);
	if (!socket) {
		tl_count(TL_GO_NO_SOCKET);
		return 0;
	}
	request = tl_go_caller(binary, TL_GO_G(ctx), tl_go_context(binary, request), &evidence);
	tl_claim(socket, request, evidence);
	return 0;
}

/* readTransfer(msg any, r *bufio.Reader): for the answer to a call, or for a received request */
SEC("uprobe")
int tl_go_answered(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	__u32 index, status;

	binary = tl_go_enter(ctx, &index);
	if (!binary ||
	    TL_GO_ARG1(ctx) != binary->response_type + (PT_REGS_IP(ctx) - binary->read_transfer_at))
		return 0;
	status = tl_user_word(TL_GO_ARG2(ctx) + binary->client_response_status);
	if (status >= 200 || status == 101)
		tl_go_finish(tl_go_object_key(TL_GO_ARG3(ctx)), status, TL_END_COMPLETE);
	return 0;
}

#endif
