// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * io/observe.bpf.c - group `observe`: server and client spans of HTTP/1.x and FastCGI from what the
 * sockets of a cgroup receive and send, and which thread works for which request.
 *
 *   cgroup_skb/ingress   incoming requests, answers to calls
 *   cgroup_skb/egress    outgoing answers, calls on sockets that sk_msg does not see
 *   tcp_rcv_space_adjust a thread has read a socket
 *   inet_sock_set_state  a connection ends, or a proxy makes one
 *   sys_enter            a thread waits for several descriptors: the tick of its event loop ends; or
 *                        it takes over a request that another one may have read
 *   (BPF_PROG_RUN)       the agent ends requests whose end no program has seen
 */
#include "evidence/find.h"
#include "io/early.h"
#include "io/listeners.h"
#include "io/option_in.h"
#include "io/sockhash.h"
#include "io/syscalls.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static __always_inline struct tl_flow *tl_new_conn(struct __sk_buff *skb, struct bpf_sock *sk,
						   const struct tl_segment *segment, __u8 role)
{
	enum tl_start start = tl_looks_like_start(skb, segment);
	struct tl_flow *flow;
	__u64 cgroup_id;

	if (!start)
		return NULL;
	cgroup_id = bpf_skb_cgroup_id(skb);
	if (!tl_traced(cgroup_id))
		return NULL;
	flow = TL_FLOW_MAKE(sk, bpf_get_socket_cookie(skb));
	if (!flow) {
		tl_count(TL_FULL_STORAGE);
		return NULL;
	}
	flow->endpoints.socket = bpf_get_socket_cookie(skb);
	flow->cgroup_id = cgroup_id;
	flow->role = role;
	sk = bpf_sk_fullsock(sk);
	flow->protocol = TL_PROTOCOL_HTTP;
	if (start == TL_START_FASTCGI)
		tl_turns_fastcgi(flow, sk);
	if (sk)
		tl_set_addresses(&flow->endpoints, sk);
	return flow;
}

static __always_inline int tl_packet(struct __sk_buff *skb, enum tl_direction direction)
{
	struct bpf_sock *sk = skb->sk;
	struct tl_flow *flow;
	struct tl_text *text;
	struct tl_http *http;
	struct tl_segment segment = {};
	bool listens, known;
	__u32 len;

	if (!sk)
		return 1;
	/* raw sockets may send TCP segments, and get copies of those of connections */
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->type != TL_SOCK_STREAM)
		return 1;
	flow = TL_FLOW_FIND(sk, bpf_get_socket_cookie(skb));
	if (flow && flow->role == TL_ROLE_OFF)
		return 1;
	len = tl_payload(skb, &segment);
	if (!len)
		return 1;
	if (direction == TL_IN) {
		listens = sk->state == BPF_TCP_LISTEN;
		if (listens)
			tl_early_packet(skb, &segment);
		if (segment.off - segment.ip_len >= 20 + TL_OPTION_SPACE)
			tl_option_in(skb,
				     (__u64)segment.ip_len << 32 | (segment.off - segment.ip_len));
		if (listens)
			return 1;
		if (!tl_in_window(sk, &segment)) {
			tl_count(TL_SKIP_OUT_OF_WINDOW);
			return 1;
		}
	}
	if (flow && tl_is_guess(flow) &&
	    flow->role == (direction == TL_IN ? TL_ROLE_CLIENT : TL_ROLE_SERVER) &&
	    tl_looks_like_request(skb, &segment, flow->protocol))
		tl_guess_again(flow);
	if (!flow || flow->role == TL_ROLE_UNKNOWN) {
		flow = tl_new_conn(skb, sk, &segment,
				   direction == TL_IN ? TL_ROLE_SERVER : TL_ROLE_CLIENT);
		if (!flow)
			return 1;
	}
	http = direction == TL_IN ? &flow->in : &flow->out;
	if (flow->role == TL_ROLE_SERVER) {
		if (direction == TL_OUT) {
			if (tl_by_writer(skb))
				tl_thread_answers(flow);
			tl_responds(flow);
			http->flags |= TL_HTTP_RESPONSE;
		}
	} else {
		if (direction == TL_OUT) {
			/* sk_msg has parsed these bytes already, before the insertion */
			if (tl_is_enrolled(flow))
				return 1;
		} else {
			/* the server speaks first: this is not HTTP */
			if (!(flow->flags & TL_FLOW_USED))
				return 1;
			http->flags |= TL_HTTP_RESPONSE;
		}
	}
	/* sk_msg does not see what this connection sends */
	if (direction == TL_OUT && flow->role == TL_ROLE_CLIENT && !(flow->flags & TL_FLOW_USED) &&
	    http->state == TL_HTTP_START && !tl_is_in_fastcgi(flow) &&
	    tl_starts_fastcgi(skb, &segment))
		tl_turns_fastcgi(flow, sk);
	/* This direction is not parsed: it needs no lock and no text. */
	if (http->state >= TL_HTTP_UNTIL_CLOSE) {
		tl_pass(&flow->sequence[direction], &segment);
		if (http->state != TL_HTTP_LOST || http->flags & TL_HTTP_RESPONSE ||
		    flow->role != TL_ROLE_SERVER || flow->flags & TL_FLOW_PIPELINED)
			return 1;
		/*
		 * A request at the start of a segment ends the state LOST of a server's connection.
		 * But until the answer is complete it may be the body of the present request.
		 */
		if (flow->exchange.flags & TL_EXCHANGE_ACTIVE &&
		    flow->out.state < TL_HTTP_UNTIL_CLOSE)
			return 1;
		if (!tl_looks_like_request(skb, &segment, flow->protocol))
			return 1;
	}
	text = TL_TEXT_MAKE(sk, flow->cookie);
	if (!text) {
		tl_count(TL_FULL_STORAGE);
		return 1;
	}
	if (!tl_take(&flow->busy[direction])) {
		/*
		 * another processor parses this direction: the check for gaps finds the missing
		 * bytes
		 */
		tl_count(TL_LOST_BUSY);
		return 1;
	}
	if (http->state == TL_HTTP_LOST) {
		if (flow->exchange.flags & TL_EXCHANGE_ACTIVE)
			tl_flow_ends(flow, text, 0, TL_END_CLOSED);
		tl_http_restart(http);
		flow->sequence[direction].next = segment.seq;
	}
	if (direction == TL_OUT && flow->role == TL_ROLE_CLIENT) {
		flow->flags &= ~TL_FLOW_BY_WRITER;
		if (tl_by_writer(skb)) {
			flow->flags |= TL_FLOW_BY_WRITER;
			tl_work_writes();
		}
	}
	known = tl_ends_soon(http);
	tl_parse_segment(skb, flow, text, &segment, direction);
	if (direction == TL_OUT && !known && tl_ends_soon(http) && flow->role == TL_ROLE_SERVER)
		tl_answer_ends_at(flow->exchange.request,
				  flow->sequence[TL_OUT].next + (__u32)http->remain);
	tl_give_back(&flow->busy[direction]);
	return 1;
}

SEC("cgroup_skb/ingress")
int tl_ingress(struct __sk_buff *skb)
{
	return tl_packet(skb, TL_IN);
}

/*
 * The current thread may have sent something that is no call that can be told, and no answer: see
 * tl_thread_acts(). Where tl_sent does not run, as before Linux 6.3: that also sees what leaves in an
 * interrupt. A global function, to have a stack of its own.
 */
__noinline int tl_goes_out(struct __sk_buff *skb)
{
	struct tl_thread *thread = tl_thread_now();
	struct tl_segment segment = {};
	struct bpf_sock *sk = skb->sk;
	struct tl_flow *flow;

	if (!thread || thread->unsure || !sk)
		return 0;
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->type != TL_SOCK_STREAM)
		return 0;
	flow = TL_FLOW_FIND(sk, bpf_get_socket_cookie(skb));
	if (!(flow && flow->role == TL_ROLE_SERVER) && tl_payload(skb, &segment) &&
	    tl_by_writer(skb))
		tl_thread_acts(thread);
	return 0;
}

SEC("cgroup_skb/egress")
int tl_egress(struct __sk_buff *skb)
{
	tl_packet(skb, TL_OUT);
	if (!tl_sends_are_seen())
		tl_goes_out(skb);
	return 1;
}

/*
 * Has the application read a whole message? The parser may be ahead of the application, or the
 * message may not be complete. The socket is locked.
 */
static __always_inline bool tl_read_whole(struct sock *sk, const struct tl_flow *flow)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

	return tcp && flow->in.state == TL_HTTP_START &&
	       (__s32)(tcp->copied_seq - flow->sequence[TL_IN].next) >= 0;
}

/* The current thread has read data of `sk`; the socket is locked. */
SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(tl_read, struct sock *sk)
{
	struct tl_flow *flow = TL_FLOW_FIND(sk, TL_COOKIE(sk));
	struct tl_thread *thread = tl_thread_now();
	__u8 evidence = TL_EVIDENCE_THREAD;
	__u64 key = 0;
	bool whole;

	if (thread) {
		tl_timers_wake(thread);
		tl_leave_partial(thread);
	}
	if (flow && flow->flags & TL_FLOW_OPAQUE) {
		flow->flags |= TL_FLOW_ANSWERED;
	} else if (!flow || flow->role == TL_ROLE_OFF || flow->role == TL_ROLE_UNKNOWN) {
		/* an event loop goes on with something unknown */
		if (thread && thread->loop)
			tl_leave(thread);
		return 0;
	}
	if (flow->role == TL_ROLE_SERVER) {
		key = flow->exchange.request;
	} else {
		key = flow->caller;
		evidence = TL_EVIDENCE_RESTORE;
	}
	/* behind the answer of FastCGI the front end awaits the end of the connection */
	whole = flow->flags & TL_FLOW_OPAQUE ||
		(tl_read_whole(sk, flow) &&
		 !(flow->role == TL_ROLE_CLIENT && tl_is_in_fastcgi(flow)));
	tl_thread_reads(flow, thread, key, evidence, whole, sk);
	return 0;
}

/* A connection ends, and with it its exchange. */
static __always_inline void tl_closes(struct tl_flow *flow, struct tl_text *text, int newstate)
{
	__u8 state;

	if (!flow || !text || !(flow->exchange.flags & TL_EXCHANGE_ACTIVE))
		return;
	state = flow->role == TL_ROLE_SERVER ? flow->out.state : flow->in.state;
	if (state == TL_HTTP_UNTIL_CLOSE) {
		/* this is the end of the answer, but not when a client only stops sending */
		if (flow->role == TL_ROLE_SERVER && newstate == BPF_TCP_CLOSE_WAIT)
			return;
		tl_flow_ends(flow, text,
			     flow->role == TL_ROLE_SERVER ? flow->out.status : flow->in.status,
			     TL_END_CLOSE_DELIMITED);
	} else if (newstate == BPF_TCP_CLOSE) {
		tl_flow_ends(flow, text, 0, TL_END_CLOSED);
	}
}

/* Removes what any program keeps by the cookie of the socket. */
static __always_inline void tl_socket_ends(__u64 cookie)
{
	if (!cookie)
		return;
	bpf_map_delete_elem(&tl_incoming, &cookie);
	bpf_map_delete_elem(&tl_socket_outs, &cookie);
	bpf_map_delete_elem(&tl_claims, &cookie);
	if (tl_config.fionread_broken)
		bpf_map_delete_elem(&tl_members, &cookie);
#ifdef TL_LEGACY
	bpf_map_delete_elem(&tl_flows, &cookie);
	bpf_map_delete_elem(&tl_texts, &cookie);
#endif
}

#ifndef TL_LEGACY
/* The current thread connects: a proxy tells for which request. */
static __always_inline void tl_claims_connection(struct sock *sk)
{
	__u64 request = tl_work_connects();

	if (request)
		tl_claim(bpf_get_socket_cookie(sk), request == TL_PROXY_NOTHING ? 0 : request,
			 TL_EVIDENCE_PROXY);
}
#endif

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tl_state, struct sock *sk, int oldstate, int newstate)
{
	__u64 cookie = TL_COOKIE(sk);

#ifndef TL_LEGACY
	if (oldstate == BPF_TCP_SYN_RECV && newstate == BPF_TCP_ESTABLISHED) {
		/* makes the cookie, by which a connection is known before it is read: tl_python_meets() */
		bpf_get_socket_cookie(sk);
		tl_take_early(sk);
		return 0;
	}
	if (newstate == BPF_TCP_SYN_SENT) {
		tl_claims_connection(sk);
		return 0;
	}
#endif
	if (newstate != BPF_TCP_CLOSE && oldstate != BPF_TCP_ESTABLISHED)
		return 0;
	tl_closes(TL_FLOW_FIND(sk, cookie), TL_TEXT_FIND(sk, cookie), newstate);
	if (newstate == BPF_TCP_CLOSE) {
		tl_socket_ends(cookie);
		tl_work_ends(cookie);
	}
	return 0;
}

/*
 * Is this what may begin or end a job of a queue? It asks each read() of the host, and so first what a
 * few loads tell.
 */
static __always_inline bool tl_works_at_jobs(struct pt_regs *regs, long id)
{
#ifndef TL_LEGACY
	if ((id != TL_NR_READ && id != TL_NR_SETPGID) || !tl_is_forked())
		return false;
	/* other system calls have these numbers */
	if (tl_is_compat())
		return false;
	if (id == TL_NR_READ)
		tl_job_reads(PT_REGS_PARM1_SYSCALL(regs), PT_REGS_PARM3_SYSCALL(regs));
	else if (!PT_REGS_PARM1_SYSCALL(regs) && !PT_REGS_PARM2_SYSCALL(regs))
		tl_job_groups();
	return true;
#else
	return false;
#endif
}

/*
 * The end of a tick: a thread waits for several descriptors. Waiting for one is no end: a client
 * library may wait for its answer. The tracepoint costs each system call of the host some
 * nanoseconds (docs/decisions/0003-end-of-tick.md).
 */
SEC("tp_btf/sys_enter")
int BPF_PROG(tl_tick, struct pt_regs *regs, long id)
{
	__u64 second = PT_REGS_PARM2_SYSCALL(regs);
	struct tl_thread *thread;
	enum tl_call call, call32;
#if defined(__TARGET_ARCH_x86)
	__u64 second32 = regs->cx, third32 = regs->dx;
#else
	__u64 second32 = second, third32 = PT_REGS_PARM3_SYSCALL(regs);
#endif

	if (tl_works_at_jobs(regs, id))
		return 0;
	call32 = tl_call32_of(id, second32, third32);
	call = tl_call_of(tl_without_x32(id), second, PT_REGS_PARM3_SYSCALL(regs),
			  PT_REGS_PARM4_SYSCALL(regs));
	/* checked last: this runs in every system call of the host */
	if (call != call32 && tl_is_compat()) {
		call = call32;
		second = second32;
	}
	if (call == TL_CALL_OTHER)
		return 0;
	if (call == TL_CALL_IOCTL) {
		if (tl_config.fionread_broken && (__u32)second == TL_FIONREAD)
			tl_learn_fionread();
		return 0;
	}
	if (call == TL_CALL_LISTEN) {
		tl_tell_listener();
		tl_work_listens(PT_REGS_PARM1_SYSCALL(regs), PT_REGS_SP(regs));
		return 0;
	}
	if (call == TL_CALL_PEER) {
		tl_work_meets(PT_REGS_PARM1_SYSCALL(regs));
		return 0;
	}
	if (call == TL_CALL_STATE) {
		tl_work_takes(PT_REGS_PARM1_SYSCALL(regs), PT_REGS_SP(regs));
		return 0;
	}
	if (call == TL_CALL_TELLS) {
		tl_work_tells(second);
		return 0;
	}
	tl_work_turns(call == TL_CALL_ACCEPT, PT_REGS_PARM1_SYSCALL(regs));
	if (call == TL_CALL_ACCEPT) {
		tl_thread_accepts();
		return 0;
	}
	thread = tl_thread_now();
	if (!thread)
		return 0;
	tl_timers_wait(thread, tl_timeout_of(id, PT_REGS_PARM4_SYSCALL(regs)));
	tl_leave_partial(thread);
	tl_thread_goes_on(thread);
	if (tl_thread_waits(thread))
		return 0;
	thread->current = 0;
	thread->unknown = 0;
	/* gunicorn's threads wait by epoll for the first bytes of a connection */
	if (!thread->serial)
		thread->loop = 1;
	return 0;
}

/*
 * Ends requests whose end no program has seen. The agent walks tl_requests, and runs this with
 * their keys (BPF_PROG_RUN); a key of 0 stands for none. It is attached nowhere. It is a raw
 * tracepoint, which Linux can run in this way since 5.10 (1b4d60ec162f): iterators are refused on
 * some kernels.
 */
SEC("raw_tp")
int tl_end_requests(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 keys[TL_ENDED_AT_ONCE];
	__u32 i;

	/* the verifier wants constant offsets into the context */
#pragma unroll
	for (i = 0; i < TL_ENDED_AT_ONCE; i++)
		keys[i] = ctx->args[i];
	for (i = 0; i < TL_ENDED_AT_ONCE; i++) {
		if (keys[i])
			tl_end_request(keys[i]);
	}
	return 0;
}
