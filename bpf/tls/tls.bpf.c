// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * tls/tls.bpf.c - group `tls`: HTTP/1.x inside of TLS, where the process hands it to OpenSSL.
 *
 *   SSL_read, SSL_read_ex    received bytes, once they are decrypted
 *   SSL_write, SSL_write_ex, SSL_write_ex2 (OpenSSL 3.3)
 *                            bytes to be sent, before they are encrypted
 *   SSL_do_handshake         which socket a TLS connection is on
 *   SSL_free                 its end
 *   tcp_rcv_space_adjust     which socket a thread has read
 *
 * A TLS connection is known by its SSL and process. The programs only read the memory of the
 * process.
 */
#include "tls/maps.h"
#include "tls/stream.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static __always_inline int tl_tls_has_read(struct pt_regs *ctx, int result)
{
	struct tl_tls_call *call;
	struct tl_flow *flow;
	__u64 key, length;

	call = tl_tls_leave(ctx, &key);
	if (!call)
		return 0;
	length = tl_tls_length(call, result);
	if (!length && !call->late)
		return 0;
	flow = tl_tls_find(key);
	if (flow && call->late)
		tl_tls_took(flow, length);
	if (!length)
		return 0;
	if (flow)
		tl_tls_read(flow, call->buffer, length);
	else
		tl_count(TL_TLS_GAVE_WAY);
	return 0;
}

static __always_inline int tl_tls_writes(struct pt_regs *ctx, const struct tl_tls_arguments *given)
{
	struct tl_tls_call *call;
	struct tl_flow *flow;
	__u64 shown;

	call = tl_tls_enter(ctx, given, false, &flow);
	if (!call || !given->length)
		return 0;
	if (tl_tls_defer(flow)) {
		call->deferred = 1;
		shown = tl_work_offers();
		if (shown)
			flow->writer = shown;
	} else {
		tl_tls_write(flow, call, given->length);
	}
	return 0;
}

static __always_inline int tl_tls_has_written(struct pt_regs *ctx, int result)
{
	struct tl_tls_call *call;
	struct tl_flow *flow;
	__u64 key, length;

	call = tl_tls_leave(ctx, &key);
	if (!call)
		return 0;
	flow = tl_tls_find(key);
	if (!flow) {
		tl_count(TL_TLS_GAVE_WAY);
		return 0;
	}
	length = tl_tls_length(call, result);
	if (call->deferred) {
		if (length) {
			call->key = key;
			tl_tls_write(flow, call, length);
			call->key = 0;
		}
		return 0;
	}
	if (flow->role != TL_ROLE_UNKNOWN && flow->role != TL_ROLE_OFF && length < call->parsed)
		flow->unsent = call->parsed - length;
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_read, __u64 ssl, __u64 buffer, int length)
{
	struct tl_tls_arguments given = { ssl, buffer, length };
	struct tl_flow *flow;

	tl_own_stack(ctx);
	tl_tls_enter(ctx, &given, true, &flow);
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_read_ex, __u64 ssl, __u64 buffer, __u64 length, __u64 length_at)
{
	struct tl_tls_arguments given = { ssl, buffer, length, length_at };
	struct tl_flow *flow;

	tl_own_stack(ctx);
	tl_tls_enter(ctx, &given, true, &flow);
	return 0;
}

SEC("uretprobe")
int BPF_KRETPROBE(tl_ssl_has_read, int result)
{
	tl_own_stack(ctx);
	return tl_tls_has_read(ctx, result);
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_write, __u64 ssl, __u64 buffer, int length)
{
	struct tl_tls_arguments given = { ssl, buffer, length };

	tl_own_stack(ctx);
	return length > 0 ? tl_tls_writes(ctx, &given) : 0;
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_write_ex, __u64 ssl, __u64 buffer, __u64 length, __u64 length_at)
{
	struct tl_tls_arguments given = { ssl, buffer, length, length_at };

	tl_own_stack(ctx);
	return tl_tls_writes(ctx, &given);
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_write_x2, __u64 ssl, __u64 buffer, __u64 length, __u64 flags, __u64 length_at)
{
	struct tl_tls_arguments given = { ssl, buffer, length, length_at };

	tl_own_stack(ctx);
	return tl_tls_writes(ctx, &given);
}

SEC("uretprobe")
int BPF_KRETPROBE(tl_ssl_has_sent, int result)
{
	tl_own_stack(ctx);
	return tl_tls_has_written(ctx, result);
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_shake, __u64 ssl)
{
	struct tl_tls_arguments given = { ssl };
	struct tl_flow *flow;

	tl_own_stack(ctx);
	tl_tls_enter(ctx, &given, true, &flow);
	return 0;
}

SEC("uretprobe")
int BPF_KRETPROBE(tl_ssl_shaken, int result)
{
	__u64 key;

	tl_own_stack(ctx);
	tl_tls_leave(ctx, &key);
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(tl_ssl_free, __u64 ssl)
{
	__u64 key = tl_tls_key(ssl);
	struct tl_http *response;
	struct tl_flow *flow;
	bool complete;

	tl_own_stack(ctx);
	flow = tl_tls_find(key);
	if (!flow)
		return 0;
	if (flow->exchange.flags & TL_EXCHANGE_ACTIVE) {
		response = flow->role == TL_ROLE_SERVER ? &flow->out : &flow->in;
		complete = response->state == TL_HTTP_UNTIL_CLOSE;
		tl_flow_ends(flow, TL_TLS_TEXT(flow), complete ? response->status : 0,
			     complete ? TL_END_CLOSE_DELIMITED : TL_END_CLOSED);
	}
	tl_tls_forget(key);
	return 0;
}

/* The current thread has read a socket: during a call, that is the socket of its TLS connection. */
SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(tl_ssl_socket, struct sock *sk)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	__u32 *born = bpf_map_lookup_elem(&tl_tls_pids, &tgid);
	struct tl_tls_thread *thread;
	struct tl_flow *flow, *tls;
	__u64 socket, key;

	if (!born || tl_process_born() != *born)
		return 0;
	thread = tl_tls_thread_now(true);
	if (!thread)
		return 0;
	socket = tl_tls_cookie(sk);
	key = tl_tls_inside(thread);
	tls = key ? tl_tls_find(key) : NULL;
	if (tls && tls->endpoints.socket == socket)
		return 0;
	flow = tl_tls_socket_flow(sk, socket);
	if (flow && !(flow->flags & TL_FLOW_OPAQUE) &&
	    (flow->role == TL_ROLE_SERVER || flow->role == TL_ROLE_CLIENT) &&
	    flow->flags & TL_FLOW_USED) {
		/* plaintext: no TLS connection is on it */
		thread->endpoints.socket = 0;
		return 0;
	}
	thread->endpoints.socket = socket;
	thread->connect = flow ? flow->connect : 0;
	thread->flags = flow ? flow->flags : 0;
	thread->endpoints.local_port = sk->__sk_common.skc_num;
	thread->endpoints.peer_port = bpf_ntohs(sk->__sk_common.skc_dport);
	tl_copy_address(thread->endpoints.local_addr, sk->__sk_common.skc_family,
			sk->__sk_common.skc_rcv_saddr, &sk->__sk_common.skc_v6_rcv_saddr);
	tl_copy_address(thread->endpoints.peer_addr, sk->__sk_common.skc_family,
			sk->__sk_common.skc_daddr, &sk->__sk_common.skc_v6_daddr);
	if (tls) {
		tl_tls_on(tls, thread);
		thread->endpoints.socket = 0;
	}
	return 0;
}
