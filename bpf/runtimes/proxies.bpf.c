// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * runtimes/proxies.bpf.c - group `proxies`: for which request a proxy works
 * (docs/operator/proxies.md).
 *
 *   HAProxy  stream_new       makes a stream, for the request that its connection has just read
 *            process_stream   works for a stream: it connects, and it writes the request
 *   Varnish  VBO_GetBusyObj   begins to fetch, for the request of a session
 *            VDI_GetHdr       fetches: it connects, and it writes the request
 *   nginx    ngx_event_connect_peer
 *                             makes a connection for a request, or takes one that was kept
 *   sched_process_exit        the agent ends, and with it the probes
 *
 * The programs only read the memory of the process.
 */
#include "core/settings.h"
#include "runtimes/proxy.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* struct session of HAProxy */
#define TL_SESSION_ORIGIN 16 /* the connection or the applet that began it */
/* struct connection */
#define TL_CONNECTION_TYPE 6 /* OBJ_TYPE_CONN, in the first byte */
#define TL_CONNECTION_OWNER 48 /* its session, where a client has made it */

/* struct req of Varnish: where the session may be, which begins with a number that shows it */
#define TL_REQ_SESSIONS 4
static const __u8 tl_req_sessions[TL_REQ_SESSIONS] = { 72, 64, 56, 80 };
#define TL_REQ_MAGIC 0xfb4abf6d
#define TL_SESS_MAGIC 0x2c2f9c5a
#define TL_SESS_FD 36

/*
 * ngx_peer_connection_t: where the log may be. Up to nginx 1.29, since, and in a build without TLS.
 * What is there has to lead to a request whose connection has that log.
 */
#define TL_PEER_LOGS 3
static const __u8 tl_peer_logs[TL_PEER_LOGS] = { 112, 120, 96 };
/* ngx_log_t */
#define TL_LOG_DATA 40
/* ngx_http_log_ctx_t: the connection, and the request */
#define TL_CONTEXT_REQUEST 8
/* ngx_connection_t */
#define TL_NGX_FD 24
#define TL_NGX_LOG 80
/* ngx_http_request_t: a signature, and the connection */
#define TL_NGX_SIGNATURE 0x50545448 /* "HTTP" */
#define TL_NGX_CONNECTION 8

enum tl_nginx_result {
	TL_NGX_OK = 0,
	TL_NGX_AGAIN = -2,
	TL_NGX_DONE = -4,
};

/* Which request a stream of HAProxy, or a fetch of Varnish, works for. */
struct tl_hap_stream {
	__u64 request; /* key of tl_requests */
	__u32 binary; /* index of the file whose probes have seen it begin */
	__u8 _pad[4];
};

/* By tl_process_key(address >> 4) of the stream, or of the fetch (struct busyobj). */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, __u64);
	__type(value, struct tl_hap_stream);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_hap_streams SEC(".maps");

/* The entry of the current thread. NULL: it is not traced, or there is no memory. */
static __always_inline struct tl_proxy_thread *tl_proxy_thread(__u16 binary)
{
	struct task_struct *task = tl_current_task();
	struct tl_proxy_thread fresh = {}, *thread;
	__u32 tid = TL_READ(task, pid);

	if (!tl_probe_traced())
		return NULL;
	thread = tl_proxy_thread_now(binary);
	if (thread)
		return thread;
	fresh.born = tl_born(task);
	fresh.binary = binary;
	bpf_map_update_elem(&tl_proxy_threads, &tid, &fresh, BPF_ANY);
	return bpf_map_lookup_elem(&tl_proxy_threads, &tid);
}

/* The request that the client's connection of a session of HAProxy serves, or 0. */
static __always_inline __u64 tl_hap_session_request(const struct tl_proxy_binary *binary,
						    __u64 session)
{
	__u64 origin = tl_user_word(session + TL_SESSION_ORIGIN), head = tl_user_word(origin);

	if ((__u8)head != TL_CONNECTION_TYPE || (__u32)(head >> 32) & binary->no_descriptor ||
	    tl_user_word(origin + TL_CONNECTION_OWNER) != session)
		return 0;
	return tl_descriptor_request(tl_user_word(origin + binary->descriptor_at));
}

/* A stream is being made. A request that is not a client's comes from an applet: it has none. */
SEC("uprobe")
int BPF_KPROBE(tl_hap_makes, __u64 session)
{
	__u32 index = bpf_get_attach_cookie(ctx);
	const struct tl_proxy_binary *binary;
	struct tl_proxy_thread *thread;

	tl_own_stack(ctx);
	binary = bpf_map_lookup_elem(&tl_proxy_bins, &index);
	thread = tl_proxy_thread(index);
	if (!binary || !thread)
		return 0;
	thread->argument = tl_hap_session_request(binary, session);
	thread->makes = 1;
	return 0;
}

SEC("uretprobe")
int BPF_KRETPROBE(tl_hap_made, __u64 address)
{
	struct tl_hap_stream stream = {};
	struct tl_proxy_thread *thread;
	__u64 key;

	tl_own_stack(ctx);
	stream.binary = bpf_get_attach_cookie(ctx);
	thread = tl_proxy_thread(stream.binary);
	if (!thread || !address)
		return 0;
	if (thread->makes)
		stream.request = thread->argument;
	thread->makes = 0;
	/* also where there is none: HAProxy uses the memory of streams again */
	key = tl_process_key(address >> 4);
	bpf_map_update_elem(&tl_hap_streams, &key, &stream, BPF_ANY);
	return 0;
}

/* The request that the session of a request of Varnish has read, or 0. */
static __always_inline __u64 tl_var_session_request(__u64 request)
{
	__u64 session = 0;
	int i;

	if ((__u32)tl_user_word(request) != TL_REQ_MAGIC)
		return 0;
#pragma unroll
	for (i = 0; i < TL_REQ_SESSIONS; i++) {
		if ((__u32)tl_user_word(session) != TL_SESS_MAGIC)
			session = tl_user_word(request + tl_req_sessions[i]);
	}
	if ((__u32)tl_user_word(session) != TL_SESS_MAGIC)
		return 0;
	return tl_descriptor_request(tl_user_word(session + TL_SESS_FD));
}

SEC("uprobe")
int BPF_KPROBE(tl_var_makes, __u64 worker, __u64 request)
{
	struct tl_proxy_thread *thread;

	tl_own_stack(ctx);
	thread = tl_proxy_thread(bpf_get_attach_cookie(ctx));
	if (!thread)
		return 0;
	thread->argument = tl_var_session_request(request);
	thread->makes = 1;
	return 0;
}

/* The current thread works for the stream or fetch at this address. */
static __always_inline int tl_proxy_works(__u32 index, __u64 address)
{
	const struct tl_hap_stream *stream;
	struct tl_proxy_thread *thread;
	__u64 key;

	thread = tl_proxy_thread(index);
	if (!thread)
		return 0;
	key = tl_process_key(address >> 4);
	stream = bpf_map_lookup_elem(&tl_hap_streams, &key);
	thread->request = stream && stream->binary == index ? stream->request : 0;
	thread->works = 1;
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(tl_hap_works, __u64 task, __u64 stream)
{
	tl_own_stack(ctx);
	return tl_proxy_works(bpf_get_attach_cookie(ctx), stream);
}

SEC("uprobe")
int BPF_KPROBE(tl_var_works, __u64 fetch)
{
	tl_own_stack(ctx);
	return tl_proxy_works(bpf_get_attach_cookie(ctx), fetch);
}

/* The current thread has left the function. */
SEC("uretprobe")
int BPF_KRETPROBE(tl_hap_rests)
{
	struct tl_proxy_thread *thread = tl_proxy_thread_now(bpf_get_attach_cookie(ctx));

	tl_own_stack(ctx);
	if (thread)
		thread->works = 0;
	return 0;
}

/* The descriptor of the client that the log at `log` is of; -1: it is of no request. */
static __always_inline __s32 tl_nginx_descriptor(__u64 log)
{
	__u64 context = tl_user_word(log + TL_LOG_DATA), connection, request;

	if (!log || !context)
		return -1;
	connection = tl_user_word(context);
	request = tl_user_word(context + TL_CONTEXT_REQUEST);
	if (!connection || !request || tl_user_word(connection + TL_NGX_LOG) != log ||
	    (__u32)tl_user_word(request) != TL_NGX_SIGNATURE ||
	    tl_user_word(request + TL_NGX_CONNECTION) != connection)
		return -1;
	return tl_user_word(connection + TL_NGX_FD);
}

/*
 * nginx wants a connection to a peer. The log of that is the log of the client's connection, which
 * leads to the request.
 */
SEC("uprobe")
int BPF_KPROBE(tl_nginx_asks, __u64 peer)
{
	__u32 index = bpf_get_attach_cookie(ctx);
	const struct tl_proxy_binary *binary;
	struct tl_proxy_thread *thread;
	__s32 number = -1;
	int i;

	tl_own_stack(ctx);
	binary = bpf_map_lookup_elem(&tl_proxy_bins, &index);
	thread = tl_proxy_thread(index);
	if (!binary || !thread)
		return 0;
#pragma unroll
	for (i = 0; i < TL_PEER_LOGS; i++) {
		if (number < 0)
			number = tl_nginx_descriptor(tl_user_word(peer + tl_peer_logs[i]));
	}
	thread->request = number < 0 ? 0 : tl_descriptor_request(number);
	thread->argument = peer;
	thread->works = 1;
	return 0;
}

/* The connection that nginx has got: the next request on it is for the same request. */
SEC("uretprobe")
int BPF_KRETPROBE(tl_nginx_asked, __s64 result)
{
	struct tl_proxy_thread *thread = tl_proxy_thread_now(bpf_get_attach_cookie(ctx));
	__u64 connection, socket;

	tl_own_stack(ctx);
	if (!thread || !thread->works)
		return 0;
	thread->works = 0;
	if (result != TL_NGX_OK && result != TL_NGX_AGAIN && result != TL_NGX_DONE)
		return 0;
	connection = tl_user_word(thread->argument);
	socket = tl_descriptor_socket(tl_user_word(connection + TL_NGX_FD));
	if (connection && socket)
		tl_claim(socket, thread->request, TL_EVIDENCE_PROXY);
	return 0;
}

/* When the last thread of the agent ends, its probes still run: they are detached after this. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(tl_proxy_end, struct task_struct *task)
{
	__u32 zero = 0, *agent = bpf_map_lookup_elem(&tl_proxy_agent, &zero);

	if (agent && *agent == (__u32)tl_process_id() && !task->signal->live.counter)
		*agent = 0;
	return 0;
}
