/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * core/abi.h - everything that crosses between the BPF programs and Python.
 *
 * This is the one source: agent/throughline/bpf/abi.py is generated from the BTF of the compiled
 * object (`make bpf` rewrites it, a unit test refuses drift), and an object whose TL_ABI_VERSION
 * differs is refused at load. Fixed-width fields and explicit padding only; constants are enums,
 * since macros are not in BTF.
 */
#ifndef THROUGHLINE_ABI_H
#define THROUGHLINE_ABI_H

#include "core/abi_runtimes.h"
#include "core/abi_trust.h"
#include "core/kernel.h"

enum tl_abi {
	TL_ABI_VERSION = 18,
	TL_METHOD_MAX = 16,
	TL_TARGET_MAX = 256,
	TL_HOST_MAX = 128,
	TL_TRACESTATE_MAX = 512,
	TL_PATH_MAX = 108, /* sockaddr_un.sun_path */
	TL_BUCKETS = 15, /* 14 bounds, those of the OpenTelemetry HTTP conventions */
	TL_TRACEPARENT_BYTES = 70, /* `traceparent: ` + 55 + CR LF */
	TL_ENDED_AT_ONCE = 8, /* requests that one run of tl_end_requests ends */
};

enum tl_kind {
	TL_KIND_SERVER = 1,
	TL_KIND_CLIENT = 2,
	TL_KIND_JOB =
		3, /* a job of a queue: `status` is its enum tl_jobs, and there is no address */
};

enum tl_method {
	TL_METHOD_OTHER = 0,
	TL_METHOD_GET,
	TL_METHOD_HEAD,
	TL_METHOD_POST,
	TL_METHOD_PUT,
	TL_METHOD_DELETE,
	TL_METHOD_CONNECT,
	TL_METHOD_OPTIONS,
	TL_METHOD_TRACE,
	TL_METHOD_PATCH,
};

enum tl_sampler {
	TL_SAMPLER_ALWAYS_OFF = 0,
	TL_SAMPLER_ALWAYS_ON = 1,
	TL_SAMPLER_RATIO = 2,
};

/* What is fixed when an object is loaded. */
struct tl_config {
	__u32 abi_version; /* set by the compiler: an object of another version is refused */
	__u32 pid_namespace; /* inode of the agent's, or 0: it is the host's first one */
	__u8 fionread_broken; /* FIONREAD of a socket in a sockhash says 0 on this kernel */
	__u8 _pad[3];
};

/*
 * What an operator may change. It is in a map, since a socket keeps the program that it was
 * enrolled with: a reload must reach that program, too.
 */
struct tl_settings {
	__u64 ratio_bound; /* RATIO: sampled when the low 64 bits of the trace id are below it */
	__u64 complete_ns; /* from then on no read is missed: programs take over from earlier ones before */
	__u8 sampler; /* enum tl_sampler, for roots */
	__u8 parent_based; /* an incoming sampled flag decides */
	__u8 trace_unlisted; /* trace cgroups that are not in tl_cgroups */
	__u8 packets; /* read contexts from TCP options of peers */
	__u8 ticks; /* the end of an event loop's tick is seen; without that threads are no evidence */
	__u8 limits; /* write nothing where our lines would push a request over a usual limit */
	__u8 parents; /* enum tl_parents, for cgroups that say nothing else */
	__u8 updates; /* a traceparent that is passed on gets the id of the call's span */
	__u8 node; /* processes of Node.js may tell where they show the request that they serve */
	__u8 sends; /* tl_sent sees what threads send */
	__u8 _pad[6];
};

/*
 * What the programs count: what happened, what they skipped and what they dropped, by reason. User
 * space shows the names in lower case without TL_.
 */
enum tl_counter {
	TL_REQUESTS_SERVER = 0,
	TL_REQUESTS_CLIENT,
	TL_SPANS_SENT,
	TL_SPANS_UNSAMPLED,
	TL_SPANS_DROPPED_RING_FULL,
	TL_INJECTED,
	TL_INJECTED_TRACESTATE,
	TL_ADOPTED_HEADER, /* an outgoing request already carried a traceparent */
	TL_PARENT_CONNECT,
	TL_PARENT_RESTORE,
	TL_PARENT_THREAD,
	TL_ROOT_NO_CONTEXT, /* a call by a thread that works for no known request */
	TL_ROOT_AMBIGUOUS, /* several requests could be the parent */
	TL_ROOT_GOROUTINE, /* a goroutine: its thread is no evidence */
	TL_ROOT_VIRTUAL_THREAD, /* the carrier of Java virtual threads: no evidence either */
	TL_ROOT_TOO_OLD,
	TL_ROOT_FANOUT,
	TL_ROOT_PARENT_ENDED, /* the request has been answered already */
	TL_RESTARTED_TRACEPARENT, /* incoming traceparent invalid or repeated */
	TL_DROPPED_TRACESTATE, /* incoming tracestate invalid, over 32 members or too long */
	TL_SKIP_PIPELINED,
	TL_SKIP_SPLIT_BLANK, /* the empty line, or record, began in an earlier send */
	TL_SKIP_HEADERS_TOO_LONG,
	TL_SKIP_MALFORMED,
	TL_SKIP_OWN_TRACESTATE, /* the application sent tracestate without traceparent */
	TL_SKIP_NO_MEMORY, /* bpf_msg_push_data or bpf_msg_pull_data refused */
	TL_SKIP_NOT_ENROLLED, /* outgoing request on a socket outside the sockhash */
	TL_SKIP_NOT_HTTP, /* client connection that speaks neither HTTP/1 nor FastCGI */
	TL_SKIP_TUNNEL, /* CONNECT or protocol upgrade */
	TL_SKIP_NEAR_LIMIT, /* our lines would push it over a usual limit of servers */
	TL_SKIP_MPTCP, /* outgoing request on a Multipath TCP socket */
	TL_LOST_GAP, /* segments missed or out of order inside a message */
	TL_LOST_BUSY, /* two processors handled one connection at once */
	TL_LOST_NOT_HTTP, /* server connection whose bytes are not HTTP/1 */
	TL_LOST_EARLY, /* request in the segment that made its connection: FastCGI, or before Linux 5.15 */
	TL_EARLY_READ, /* requests in segments that came to a listener: anybody can send them */
	TL_EARLY_TAKEN, /* of these, the first of a connection that its segment made */
	TL_SKIP_OUT_OF_WINDOW, /* segments that TCP will not accept: not parsed */
	TL_ENROLLED,
	TL_ENROL_BUSY, /* another program owns the socket (EBUSY) */
	TL_ENROL_FAILED,
	TL_EVICTED,
	TL_EVICTED_FIONREAD, /* taken out of the sockhash for a process that calls FIONREAD, where that is broken */
	TL_FIONREAD_LEARNED, /* processes that were seen to call FIONREAD */
	TL_FULL_TRUST, /* map full */
	TL_FULL_REQUESTS, /* map full */
	TL_FULL_TRACESTATES,
	TL_FULL_DURATIONS,
	TL_FULL_STORAGE,
	TL_FORCED_DROP, /* a send was refused because its insertion could not be undone */
	TL_OPTION_WRITTEN, /* segments that left with a context in a TCP option */
	TL_OPTION_READ, /* segments that came with a context in a TCP option */
	TL_OPTION_TAKEN, /* incoming requests whose parent came in a TCP option */
	TL_OPTION_MALFORMED, /* kind 25, but not our layout */
	TL_OPTION_STRANGER, /* an option from an address that is no peer */
	TL_OPTION_STALE, /* an option in a segment that the connection cannot receive next */
	TL_OPTION_NO_ROOM, /* other options take the space */
	TL_OPTION_TOO_BIG, /* the segment is full or will be cut into several */
	TL_TLS_NOT_HTTP, /* TLS connection that does not speak HTTP/1 */
	TL_TLS_NO_SOCKET, /* TLS request whose connection is not known */
	TL_TLS_LOST, /* TLS connection whose bytes cannot be followed any more */
	TL_FULL_TLS, /* map full */
	TL_FULL_INCOMING,
	TL_PARENT_GOROUTINE,
	TL_PARENT_CONTEXT,
	TL_GO_CHILD_UNKNOWN, /* goroutines that a request's goroutine started, whose number was not known then */
	TL_GO_CHILD_RECEIVES, /* goroutines that take work from others: they do not inherit the request */
	TL_GO_TOO_DEEP,
	TL_FULL_GO,
	TL_GO_NO_SOCKET, /* requests of a Go program whose connection is not known */
	TL_FULL_GO_STARTS, /* map full */
	TL_GO_WRITTEN, /* requests of Go programs that a traceparent was written into */
	TL_GO_WRITE_UNPROVEN, /* not all of the header could be read: it may have a traceparent already */
	TL_GO_WRITE_NO_ROOM, /* no buffer had room for the traceparent */
	TL_GO_WRITE_MISMATCH, /* the request that is being written is not the expected one */
	TL_GO_WRITE_FAILED, /* the kernel refused a write: nothing was changed */
	TL_GO_CLIENT_CONN, /* a call that may wait for its connection: not followed */
	TL_TLS_BEGUN, /* exchanges seen inside TLS */
	TL_TLS_ENDED, /* exchanges inside TLS that have ended; the others are open, or were lost */
	TL_TLS_GAVE_WAY, /* TLS connections whose entry made room for another during a call */
	TL_GO_BEGUN, /* exchanges seen in Go programs */
	TL_GO_ENDED,
	TL_PARENT_PYTHON,
	TL_PARENT_JAVA,
	TL_PARENT_UNIX,
	TL_UNIX_UNSEEN, /* bytes of a message on a Unix socket that were sent without being seen */
	TL_UNIX_RACED, /* requests on Unix sockets that were read before they had been parsed */
	TL_UNIX_UNREAD, /* requests on Unix sockets that were answered before they had been parsed */
	TL_ROOT_NOT_PARSED, /* the request that the call is made for has not been parsed yet */
	TL_PARENT_TICK,
	TL_ROOT_NOT_PROVEN, /* there is likely evidence for a parent, but it must be proven */
	TL_ROOT_CONTRADICTED, /* what was seen of the program contradicts the evidence */
	TL_CONTRADICTED_ANSWER, /* enum tl_seen, in its order */
	TL_CONTRADICTED_READ,
	TL_CONTRADICTED_RESPONSE,
	TL_CONTRADICTED_IDLE,
	TL_CONTRADICTED_LATE,
	TL_CONTRADICTED_CONNECTION,
	TL_GO_GAVE_WAY, /* requests served by Go programs whose entry made room for another before they ended */
	TL_ROOT_JAVA_OTHER_THREAD, /* Java: the thread that calls has read no request */
	TL_ROOT_JAVA_SHARED_THREAD, /* Java: the virtual thread reads requests while others, which it read, are open */
	TL_JAVA_CONTRADICTED, /* processes of Java whose platform threads do the work of several requests */
	TL_ROOT_JAVA_UNREADABLE, /* Java: which thread calls could not be read */
	TL_ROOT_PYTHON_TASK, /* a Python task that no known request has started */
	TL_ROOT_PYTHON_UNKNOWN, /* a Python task whose start was not seen */
	TL_PYTHON_UNREADABLE, /* copies of contexts in a process whose memory is not as expected */
	TL_PYTHON_INTERPRETERS, /* copies of contexts in another interpreter than the thread's first */
	TL_PYTHON_UNFREED, /* contexts whose address was used again, and whose end was not seen */
	TL_PARENT_PROXY,
	TL_ROOT_PROXY_OTHER, /* a proxy: the call is for no request of its clients */
	TL_UPDATED_HEADER, /* a traceparent that was passed on names the call's span now */
	TL_ROOT_PROXY_UNKNOWN, /* a proxy: it is not known which request the call is for */
	TL_PARENT_RUBY,
	TL_ROOT_RUBY_OTHER_THREAD, /* Puma: the thread that calls has taken over no request */
	TL_RUBY_SHARED_THREAD, /* Puma: requests that were taken over by fibers, or by threads that share one */
	TL_PARENT_NODE,
	TL_ROOT_NODE_TASK, /* Node.js: a call that no request has made */
	TL_ROOT_NODE_UNKNOWN, /* Node.js: a call of a request whose read was not seen, or of another thread */
	TL_ROOT_RUNTIME_UNREADABLE, /* the process may run a known runtime: its memory could not be read */
	TL_ROOT_NODE_HTTP2, /* Node.js: a call of a request that came by HTTP/2 */
	TL_PARENT_JOB,
	TL_JOBS_BEGUN, /* jobs of Celery and RQ */
	TL_COUNTERS,
};

struct tl_duration_key {
	__u64 cgroup_id;
	__u16 status;
	__u8 kind;
	__u8 method;
	__u8 http_minor;
	__u8 tls; /* seen inside TLS */
	__u8 http_major; /* 0: 1 */
	__u8 grpc; /* a call of gRPC: `status` is its code */
};

struct tl_duration {
	__u64 requests;
	__u64 sum_ns;
	__u64 buckets[TL_BUCKETS];
};

/* How the parent of a span was found. */
enum tl_evidence {
	TL_EVIDENCE_NONE = 0, /* no parent: the span is the root of a new trace */
	TL_EVIDENCE_HEADER = 1, /* the message itself carried a traceparent */
	TL_EVIDENCE_CONNECT = 2, /* the connection was made while the request was current */
	TL_EVIDENCE_RESTORE = 3, /* the thread read the answer of an earlier call of the request */
	TL_EVIDENCE_THREAD = 4, /* the thread read the request */
	TL_EVIDENCE_PACKET = 5, /* the request came with a TCP option that carried a context */
	TL_EVIDENCE_GOROUTINE =
		6, /* Go: the goroutine, or the one that started it, read the request */
	TL_EVIDENCE_CONTEXT = 7, /* Go: the call was given the request's context.Context */
	TL_EVIDENCE_PYTHON =
		8, /* Python: the call was made in the request's context (contextvars), or in a copy of it */
	TL_EVIDENCE_JAVA = 9, /* Java: the thread, which may be a virtual one, read the request */
	TL_EVIDENCE_UNIX =
		10, /* the process at the other end of the Unix socket made the request */
	TL_EVIDENCE_TICK = 11, /* the event loop has read the request, and nothing else since */
	TL_EVIDENCE_PROXY =
		12, /* HAProxy, nginx: the stream or request for which the call is made */
	TL_EVIDENCE_RUBY = 13, /* Ruby: Puma's thread has taken over the request */
	TL_EVIDENCE_NODE =
		14, /* Node.js: the call was made in the request's asynchronous context */
	TL_EVIDENCE_JOB = 15, /* Celery, RQ: the process works at the job */
};

/* Why a span ended. */
enum tl_end {
	TL_END_COMPLETE = 0, /* the response was seen whole */
	TL_END_CLOSED = 1, /* the connection closed inside the exchange */
	TL_END_CLOSE_DELIMITED = 2, /* the response has no length: it ends with the connection */
};

enum tl_span_flags {
	TL_SPAN_TLS = 1 << 0, /* the exchange was seen inside TLS */
	TL_SPAN_GRPC = 1 << 1, /* a call of gRPC: `status` is its code, `target` /SERVICE/METHOD */
	TL_SPAN_UNIX = 1 << 2, /* on a Unix socket: the addresses and ports are 0 */
	TL_SPAN_LIKELY = 1 << 3, /* the parent is likely, not proven */
};

/*
 * One finished, sampled span. A record has `tracestate` only where that is not empty, and `path`
 * only where there is either. Times are CLOCK_MONOTONIC nanoseconds; ports are in host order; IPv4 addresses are
 * IPv4-mapped IPv6.
 */
struct tl_span {
	__u64 start_ns;
	__u64 end_ns;
	__u64 cgroup_id;
	__u8 trace_id[16];
	__u8 span_id[8];
	__u8 parent_span_id[8]; /* all zero: none */
	__u8 local_addr[16];
	__u8 peer_addr[16];
	__u16 local_port;
	__u16 peer_port;
	__u16 status; /* HTTP status code, 0: none was seen */
	__u8 kind; /* enum tl_kind */
	__u8 evidence; /* enum tl_evidence */
	__u8 trace_flags;
	__u8 http_minor; /* HTTP/1.x */
	__u8 end; /* enum tl_end */
	__u8 method_len;
	__u16 target_len; /* length on the wire; at most TL_TARGET_MAX bytes of it are kept */
	__u16 host_len;
	__u16 tracestate_len;
	__u8 flags; /* enum tl_span_flags */
	__u8 http_major; /* 0: 1 */
	__u32 pid; /* thread group that read the request (server) or wrote it (client), or 0 */
	char method[TL_METHOD_MAX];
	char host[TL_HOST_MAX];
	char target[TL_TARGET_MAX];
	char path[TL_PATH_MAX]; /* of a Unix socket that is bound; abstract: it begins with 0 */
	__u16 path_len;
	__u8 _pad[2];
	char tracestate[TL_TRACESTATE_MAX];
};

/*
 * Where the programs of a Go binary keep what we read: offsets in bytes, TL_GO_UNKNOWN where an
 * offset is not known. Members are named after package, type and field.
 */
struct tl_go_binary {
	__u64 newproc_at; /* addresses of probes, as linked */
	__u64 round_trip_at;
	__u64 serve_at;
	__u64 run_handler_at;
	__u64 write_request_at;
	__u64 read_transfer_at;
	__u64 grpc_serve_at;
	__u64 grpc_call_at;
	__u64 grpc_finish_at;
	__u64 grpc_put_at;
	__u64 write_headers_at;
	__u64 write_header_at;
	__u64 tcp_conn_type; /* addresses of type descriptors, as linked: *net.TCPConn */
	__u64 response_type; /* *net/http.Response */
	__u64 tls_conn_type; /* *crypto/tls.Conn */
	__u64 grpc_server_type; /* *transport.http2Server */
	__u64 grpc_client_type; /* *transport.http2Client */
	__u64 grpc_error_type; /* *status.Error */
	__u64 wrap_error_type; /* *fmt.wrapError */
	__u64 grpc_incoming_type; /* metadata.mdIncomingKey */
	__u64 grpc_outgoing_type; /* metadata.mdOutgoingKey */
	__u64 grpc_headers_type; /* *transport.headerFrame, *clientHeaders since 1.85 */
	__u64 grpc_buffer_type; /* *transport.bufWriter */
	__u64 buffer_type; /* *bufio.Writer */
	__u16 g_goid;
	__u16 g_parent_goid; /* Go 1.21 */
	__u16 g_m;
	__u16 m_p;
	__u16 p_goidcache;
	__u16 p_goidcacheend;
	__u16 request_ctx;
	__u16 persist_conn_conn;
	__u16 persist_conn_tls_state;
	__u16 persist_conn_br;
	__u16 fd_sysfd; /* net.netFD.pfd.Sysfd */
	__u16 request_method;
	__u16 request_url;
	__u16 request_proto_major;
	__u16 request_header;
	__u16 request_host;
	__u16 request_uri;
	__u16 request_tls;
	__u16 url_host;
	__u16 url_path;
	__u16 url_raw_query;
	__u16 response_conn; /* of a server: net/http.response */
	__u16 response_status;
	__u16 conn_rwc;
	__u16 client_response_status; /* net/http.Response.StatusCode */
	__u16 h2_server_conn; /* (*serverConn).conn */
	__u16 h2_writer_state; /* (*responseWriter).rws */
	__u16 h2_state_status;
	__u16 h2_stream_conn; /* (*clientStream).cc */
	__u16 h2_client_conn; /* (*ClientConn).tconn */
	__u16 h2_client_tls_state;
	__u16 h2_fields; /* (*MetaHeadersFrame).Fields */
	__u16 grpc_stream; /* (*ServerStream).Stream where that is a pointer: 1.69 to 1.84 */
	__u16 grpc_stream_method;
	__u16 grpc_stream_ctx;
	__u16 grpc_server_conn; /* (*http2Server).conn */
	__u16 grpc_attempt_stream; /* (*csAttempt).cs */
	__u16 grpc_attempt_transport;
	__u16 grpc_client_conn; /* (*http2Client).conn */
	__u16 grpc_call_header; /* (*clientStream).callHdr */
	__u16 grpc_call_ctx;
	__u16 grpc_call_first; /* (*clientStream).firstAttempt */
	__u16 grpc_header_host; /* (*CallHdr).Host */
	__u16 grpc_header_method;
	__u16 grpc_error_status; /* (*status.Error).s */
	__u16 grpc_error_proto; /* (*status.Error).e before 1.40: the *google.rpc.Status itself */
	__u16 grpc_status_proto; /* (*status.Status).s */
	__u16 grpc_proto_code; /* (*google.rpc.Status).Code */
	__u16 wrap_error_err;
	__u16 persist_conn_bw;
	__u16 persist_conn_is_client_conn; /* Go 1.26 */
	__u16 transfer_writer_header;
	__u16 buffer_buf; /* bufio.Writer.buf */
	__u16 buffer_n;
	__u16 framer_w; /* (*Framer).w */
	__u16 h2_stream_id; /* (*clientStream).ID */
	__u16 grpc_attempt_ctx; /* (*csAttempt).ctx */
	__u16 grpc_headers_hf; /* (*headerFrame).hf */
	__u16 grpc_headers_init; /* (*headerFrame).initStream; servers set none */
	__u16 grpc_loopy_cbuf; /* (*loopyWriter).cbuf */
	__u16 grpc_buffer_buf; /* (*bufWriter).buf, or */
	__u16 grpc_buffer_handle; /* (*bufWriter).bufHandle, which points to it */
	__u16 grpc_buffer_offset;
	__u8 swiss_maps; /* maps are Swiss tables (Go 1.24) */
	__u8 writes; /* enum tl_go_writes: what go_write writes into */
};

/* Requests that a context is written into, by how they are sent. */
enum tl_go_writes {
	TL_GO_WRITES_HTTP1 = 1 << 0,
	TL_GO_WRITES_HTTP2 = 1 << 1,
	TL_GO_WRITES_GRPC = 1 << 2,
};

enum tl_go {
	TL_GO_UNKNOWN = 0xffff,
	TL_GO_BINARIES = 256, /* indices, of which 0 is none */
	TL_GO_AGAIN = 1
		      << 17, /* in a cookie: processes of this binary are known by another index */
	TL_GO_RESTARTS =
		1
		<< 16, /* in a cookie: the probed branch, when taken, begins the function once more */
};

/* A function that goroutines begin with. */
struct tl_go_start_key {
	__u32 binary;
	__u32 _pad;
	__u64 pc; /* as linked */
};

/*
 * Does a goroutine that begins with a function work for the request of the goroutine that started
 * it?
 */
enum tl_go_start {
	TL_GO_START_NEW = 0, /* the agent has not looked at the function yet */
	TL_GO_START_INHERITS, /* yes */
	TL_GO_START_RECEIVES, /* no: it takes work from others, as workers of a pool do */
};

enum tl_request_flags {
	TL_REQUEST_PROBED = 1 << 0, /* its end is seen only while there are probes in its process */
	TL_REQUEST_SETTLED = 1 << 1, /* it has made a call or a connection, or could have */
	TL_REQUEST_JOB = 1 << 2, /* a job of a queue: its start is in the future, see TL_JOB_NS */
};

/*
 * A request that is being served: what its calls inherit. As soon as it ends, its element of the
 * map may hold another request. So `span_id`, which is its key, is written last and erased first.
 */
struct tl_request {
	__u64 start_ns;
	__u8 trace_id[16];
	__u8 span_id[8];
	__u8 parent_span_id[8]; /* as it came in */
	__u64 reader; /* tl_thread.id of the thread that read it, 0: none yet */
	__u64 answering; /* its key, once it has begun to answer */
	__u32 fanout;
	__u8 trace_flags;
	__u8 flags; /* enum tl_request_flags */
	__u16 tracestate_len;
	__u64 sock; /* address in the kernel of the TCP socket that it was read from, or 0 */
	__u64 socket; /* the cookie of that socket: its memory may be another one's by now */
	__u32 java; /* a JVM's thread that has read it: its id, or TL_JAVA_VIRTUAL; 0: none was seen */
	__u32 answer_end; /* TCP sequence number behind its answer, 0: not known (yet) */
	__u8 keeps; /* the socket took only a part of what was written last: the program keeps the rest */
	__u8 _pad[7];
};

#endif
