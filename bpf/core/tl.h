/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * core/tl.h - state, settings, counters and maps that the feature groups share.
 *
 * The maps are pinned by name: whichever object is loaded second reuses those of the first, and
 * an agent that starts after a crash adopts those that are there.
 */
#ifndef THROUGHLINE_BPF_H
#define THROUGHLINE_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "core/abi.h"
#include "core/compat.h"

#define TL_CHUNK \
	128 /* bytes parsed per call: it lives on the stack, which preemption cannot share */
#define TL_TURNS 8 /* elements parsed per call of tl_http_turns() */
/*
 * Chunks parsed per packet or send: 1 MB, more than either can be (GSO_MAX_SIZE is 512 KB, and what
 * sk_msg shows at once less). In two loops, of which the verifier walks each on its own.
 */
#define TL_CHUNKS_MAX 128
#define TL_ROUNDS_MAX 64
#define TL_HEADER_BYTES_MAX 16384
#define TL_FANOUT_MAX 1024
#define TL_SERIES_MAX 1024 /* entries of tl_durations for each cgroup */
#define TL_AGE_MAX_NS (300ULL * 1000 * 1000 * 1000)
#define TL_DEFERRED_NS (60ULL * 1000 * 1000 * 1000)

/* Written by the agent before load, read-only after it. Alone in its section. */
const volatile struct tl_config tl_config SEC(".rodata.config") = {
	.abi_version = TL_ABI_VERSION,
};

/* What Python is told of: BTF holds only types that something uses. */
struct tl_abi_types {
	struct tl_span span;
	struct tl_duration_key duration_key;
	struct tl_duration duration;
	struct tl_request request;
	enum tl_abi abi;
	enum tl_kind kind;
	enum tl_evidence evidence;
	enum tl_end end;
	enum tl_method method;
	enum tl_sampler sampler;
	enum tl_counter counter;
	enum tl_span_flags span_flags;
	struct tl_go_binary go_binary;
	struct tl_go_start_key go_start_key;
	enum tl_go go;
	enum tl_go_start go_start;
	enum tl_go_writes go_writes;
	enum tl_request_flags request_flags;
};
const struct tl_abi_types *tl_abi_types __attribute__((unused));

/* Where the bytes of one direction of a connection stand. */
enum tl_http_state {
	TL_HTTP_START = 0, /* before a message; empty lines are skipped */
	TL_HTTP_METHOD,
	TL_HTTP_TARGET,
	TL_HTTP_VERSION,
	TL_HTTP_STATUS,
	TL_HTTP_NAME_START, /* first byte of a header line */
	TL_HTTP_NAME,
	TL_HTTP_VALUE,
	TL_HTTP_SKIP, /* the rest of a line that does not matter */
	TL_HTTP_BLANK, /* CR of the empty line was seen */
	TL_HTTP_FRAMING, /* header block complete: the caller decides what follows */
	TL_HTTP_BODY, /* `remain` bytes */
	TL_HTTP_CHUNK_SIZE,
	TL_HTTP_CHUNK_EXT,
	TL_HTTP_CHUNK_DATA, /* `remain` bytes */
	TL_HTTP_CHUNK_END, /* CR LF behind the data */
	TL_HTTP_TRAILER_START,
	TL_HTTP_TRAILER,
	TL_HTTP_TRAILER_BLANK,
	TL_HTTP_PROXY_LINE, /* the PROXY protocol's header in front of the first request: a line */
	TL_HTTP_PROXY_BINARY, /* its second version: signature, version, family and length */
	TL_HTTP_PROXY_DATA, /* `remain` bytes of it */
	TL_HTTP_UNTIL_CLOSE, /* the body ends with the connection */
	TL_HTTP_TUNNEL, /* CONNECT or an upgrade: no HTTP any more */
	TL_HTTP_LOST, /* bytes were missed, or they are not HTTP */
};

enum tl_header {
	TL_HEADER_TRACEPARENT = 0,
	TL_HEADER_TRACESTATE,
	TL_HEADER_TRANSFER_ENCODING,
	TL_HEADER_CONTENT_LENGTH,
	TL_HEADER_HOST,
	TL_HEADERS,
	TL_HEADER_NONE = 0xff,
};

enum tl_http_flags {
	TL_HTTP_CHUNKED = 1 << 0, /* last transfer coding is chunked */
	TL_HTTP_HAS_LENGTH = 1 << 1,
	TL_HTTP_HAS_ENCODING = 1 << 2,
	TL_HTTP_MALFORMED = 1 << 3,
	TL_HTTP_HAS_TRACEPARENT = 1 << 4,
	TL_HTTP_BAD_TRACEPARENT = 1 << 5, /* repeated, folded, too long */
	TL_HTTP_HAS_TRACESTATE = 1 << 6,
	TL_HTTP_BAD_TRACESTATE = 1 << 7,
	TL_HTTP_BLANK_SEEN = 1 << 8, /* blank_at is valid for the current send */
	TL_HTTP_SYNCED = 1 << 9, /* next_seq is valid */
	TL_HTTP_RESPONSE = 1 << 10, /* this direction carries responses */
	TL_HTTP_LATER = 1 << 11, /* not the first message of the connection */
};

/* Resumable parser of one direction. */
struct tl_http {
	__u64 remain; /* bytes left of the body or chunk; value of the number being read */
	__u64 token; /* the last eight letters of a transfer coding */
	__u32 header_bytes;
	__u32 next_seq; /* TCP sequence number expected next */
	__u32 blank_at; /* offset in the current send at which the empty line starts */
	__u32 data; /* bytes seen of the current body or chunk, at most 2^31 */
	__u16 flags; /* enum tl_http_flags */
	__u16 pos; /* position in the current element */
	__u16 status;
	__u8 state; /* enum tl_http_state */
	__u8 header; /* enum tl_header, while in its value */
	__u8 names; /* bit per header whose name still fits */
	__u8 minor;
	__u8 method; /* enum tl_method */
	__u8 members; /* of tracestate */
	__u8 member; /* enum tl_member: where in a tracestate member */
	__u8 empty_lines;
	__u16 fields; /* header lines of the message */
};

enum tl_member {
	TL_MEMBER_START = 0,
	TL_MEMBER_KEY,
	TL_MEMBER_VALUE,
};

/* What is kept of a request's text. */
struct tl_text {
	char traceparent[64];
	char host[TL_HOST_MAX];
	char target[TL_TARGET_MAX];
	char method[TL_METHOD_MAX];
	char tracestate[TL_TRACESTATE_MAX];
	__u16 traceparent_len;
	__u16 host_len;
	__u16 target_len; /* on the wire */
	__u16 method_len;
	__u16 tracestate_len;
	__u16 _pad[3];
};

struct tl_chunk {
	__u32 len;
	__u32 pos;
	__u32 base; /* offset of data[0] in the packet or send */
	__u32 _pad;
	__u8 data[TL_CHUNK + 8];
};

enum tl_role {
	TL_ROLE_UNKNOWN = 0,
	TL_ROLE_SERVER,
	TL_ROLE_CLIENT,
	TL_ROLE_OFF, /* not HTTP, not traced, or given up: left alone */
};

enum tl_conn_flags {
	TL_CONN_ENROLLED = 1 << 0, /* in the sockhash */
	TL_CONN_FIRST = 1 << 1, /* its request is the first that it carries */
	TL_CONN_USED = 1 << 2, /* has carried a request */
	TL_CONN_RESPONDING = 1 << 3, /* the response has begun */
	TL_CONN_ACTIVE = 1 << 4, /* an exchange is under way */
	TL_CONN_OPAQUE = 1 << 5, /* client connection of another protocol: a database, TLS, … */
	TL_CONN_ANSWERED = 1 << 6, /* opaque: something was read since the last write */
	TL_CONN_CONNECTED = 1 << 7, /* client: we saw it being made, and `connect` says for whom */
	TL_CONN_LEAVES = 1 << 8, /* leaves the sockhash once its request is acknowledged */
	TL_CONN_TLS = 1 << 9, /* what is inside a TLS connection: kept by its SSL, not its socket */
	TL_CONN_PIPELINED = 1 << 10, /* is left alone once the exchange under way has ended */
	TL_CONN_CALLED = 1 << 11, /* TLS: a call for it was seen before */
	TL_CONN_GO = 1 << 12, /* one exchange of a Go program, told by the program */
	TL_CONN_GRPC = 1 << 13, /* a call of gRPC */
	TL_CONN_EARLY = 1 << 14, /* in tl_early: there is no connection yet, perhaps never */
	TL_CONN_MPTCP = 1 << 15, /* client: Multipath TCP, whose sends sk_msg does not see */
};

/* One connection, from the first bytes that concern us to its end. */
struct tl_conn {
#ifdef TL_LEGACY
	__u64 cookie;
	struct tl_chunk chunk[2]; /* by direction; the stack's could not be handed on */
#endif
	__u64 socket; /* its cookie, or 0 when that is not known */
	__u64 cgroup_id;
	__u64 request; /* server: the request being served (key of tl_requests), or 0 */
	__u64 parent; /* client: the request whose call this is, kept until the next call */
	__u64 connect; /* client: the request during which the connection was made */
	__u64 writer; /* opaque: the request that wrote last, or 0 when that is not known */
	__u64 start_ns;
	__u8 trace_id[16];
	__u8 span_id[8];
	__u8 parent_span_id[8];
	__u8 local_addr[16];
	__u8 peer_addr[16];
	__u16 local_port;
	__u16 peer_port;
	__u32 pid;
	__u32 busy[2]; /* one parser at a time per direction */
	__u8 role; /* enum tl_role */
	__u8 evidence; /* enum tl_evidence */
	__u8 trace_flags;
	__u8 http_major; /* 0: 1 */
	__u32 flags; /* enum tl_conn_flags */
	__u32 unsent; /* TLS: bytes that were parsed, but not written: they will come again */
	__u32 born; /* when the process `pid` began: see tl_born() */
	__u16 early_header; /* TL_CONN_EARLY: enum tl_http_flags of the request, once it has begun */
	__u16 _pad2[3];
	struct tl_http in;
	struct tl_http out;
};

struct tl_tracestate {
	__u64 request; /* its key: as with tl_request, another request's may stand here a moment later */
	char text[TL_TRACESTATE_MAX];
};

/*
 * What a thread is doing. `open` counts the requests that it read and that have neither made a
 * call nor begun to answer: in an event loop any of them may be the one that calls next. They are in
 * tl_open.
 */
struct tl_thread {
	__u64 id; /* of this entry: the number of the thread, and above it one of chance */
	__u64 current; /* key of tl_requests, or 0 */
	__u64 partial; /* the request of which a part was read last: see tl_leave_partial() */
	__u64 deferred_ns; /* when it last called in a tick that had read nothing: a timer did */
	__s32 open;
	__u32 born; /* when the thread began: see tl_born() */
	__u8 loop; /* it has waited for several descriptors at once */
	__u8 evidence; /* how `current` was found */
	__u8 unknown; /* no `current`, since it read something that belongs to nobody we know */
	__u8 _pad[5];
};

struct tl_open_key {
	__u64 request;
	__u64 thread; /* tl_thread.id */
};

struct {
	TL_SOCKET_MAP(struct tl_conn);
} tl_conns SEC(".maps");

struct {
	TL_SOCKET_MAP(struct tl_text);
} tl_texts SEC(".maps");

#if defined(TL_LEGACY) && defined(TL_OF_TLS)
/* Of TLS connections, by tl_tls_key(). The oldest give way: a process that dies frees none of them. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_conn);
} tl_tls_conns SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_text);
} tl_tls_texts SEC(".maps");

#define TL_CONNS tl_tls_conns
#define TL_TEXTS tl_tls_texts
#else
#define TL_CONNS tl_conns
#define TL_TEXTS tl_texts
#endif

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, __u64);
	__type(value, struct tl_request);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_requests SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_tracestate);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_tracestates SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, __u32);
	__type(value, struct tl_thread);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_threads SEC(".maps");

/*
 * The requests that tl_thread.open counts. Several processors may find at once that a request opens, or
 * settles; the one that makes its entry counts it, and so does the one that removes it. Never more
 * than there are requests: each is in it once.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, struct tl_open_key);
	__type(value, __u8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_open SEC(".maps");

/* What came last in a TCP option with the segments of a connection: see option.bpf.h. */
struct tl_incoming {
	__u8 trace_id[16];
	__u8 span_id[8];
	__u8 trace_flags;
	__u8 fresh; /* no request has begun since it came */
	__u8 _pad[6];
};

/*
 * A request in the segment that also completes the handshake (the bare ACK was lost or never sent, or
 * the accept queue was full): see observe.bpf.c. The random numbers in it tell the connection that TCP makes
 * of the segment from any other.
 */
struct tl_early {
	__u8 local_addr[16];
	__u8 peer_addr[16];
	__u16 local_port;
	__u16 peer_port;
	__u32 seq; /* of the first byte */
	__u32 acknowledges;
	__u32 waits; /* no connection has taken it */
	struct tl_incoming incoming;
	struct tl_conn conn;
	struct tl_text text;
};

/*
 * Processes (thread groups) that were seen to call FIONREAD, and when they began (tl_born()); kept only
 * where that is broken.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_fionread SEC(".maps");

/* A process, as tl_fionread has it. */
struct tl_member_of {
	__u32 pid;
	__u32 born;
};

/*
 * Where FIONREAD is broken: what is in the sockhash, by socket cookie, and the process that made the connection. Ends
 * with the connection, or when the socket leaves the sockhash. Whatever is not in it, sk_msg does not see any more.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct tl_member_of);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_members SEC(".maps");

/* Always zero: what new entries that are too large for the stack start from. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_RDONLY_PROG);
	__type(key, __u32);
	__type(value, struct tl_early);
} tl_nothing SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tl_settings);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_settings SEC(".maps");

/* cgroup id -> traced or not; what is missing follows tl_settings.trace_unlisted. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_cgroups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TL_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct tl_duration_key);
	__type(value, struct tl_duration);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_durations SEC(".maps");

/* cgroup id -> how many entries of tl_durations are its: servers choose statuses, and clients methods. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_series SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_spans SEC(".maps");

#define TL_TICK_NS 10000000

/*
 * When a task began, as /proc/PID/stat has it: in hundredths of a second since boot. Numbers of threads
 * and of processes are given again; with this they are not.
 */
static __always_inline __u32 tl_born(struct task_struct *task)
{
	return TL_READ(task, start_boottime) / TL_TICK_NS;
}

static __always_inline bool tl_is_born(struct task_struct *task, __u32 born)
{
	return TL_READ(task, start_boottime) - (__u64)born * TL_TICK_NS < TL_TICK_NS;
}

static __always_inline void tl_count(__u32 reason)
{
	__u64 *value = bpf_map_lookup_elem(&tl_counters, &reason);

	if (value)
		*value += 1;
}

static __always_inline const struct tl_settings *tl_settings_now(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&tl_settings, &zero);
}

static __always_inline bool tl_traced(__u64 cgroup_id)
{
	__u8 *traced = bpf_map_lookup_elem(&tl_cgroups, &cgroup_id);

	const struct tl_settings *settings;

	if (traced)
		return *traced;
	settings = tl_settings_now();
	return settings && settings->trace_unlisted;
}

enum tl_direction {
	TL_IN = 0,
	TL_OUT = 1,
};

static __always_inline struct tl_http *tl_http_of(struct tl_conn *conn, __u32 direction)
{
	return direction == TL_IN ? &conn->in : &conn->out;
}

/* A socket's cookie in a program that may follow its fields; 0 while nobody has asked for it. */
#define TL_COOKIE(sk) ((sk)->__sk_common.skc_cookie.counter)

/*
 * What we keep of a socket. And the arguments of functions that the verifier walks once, whoever
 * calls them: it trusts a pointer only as far as its type goes, and older ones trust none, so
 * there the cookie is handed on.
 */
#ifdef TL_LEGACY
static __always_inline void *tl_kept(void *map, __u64 cookie, bool create)
{
	void *value = bpf_map_lookup_elem(map, &cookie);
	const void *nothing;
	__u32 zero = 0;

	if (value || !create)
		return value;
	nothing = bpf_map_lookup_elem(&tl_nothing, &zero);
	if (!nothing)
		return NULL;
	bpf_map_update_elem(map, &cookie, nothing, BPF_NOEXIST);
	return bpf_map_lookup_elem(map, &cookie);
}

static __always_inline struct tl_conn *tl_make_conn(__u64 cookie)
{
	struct tl_conn *conn = tl_kept(&TL_CONNS, cookie, true);

	if (conn)
		conn->cookie = cookie;
	return conn;
}

#define TL_CONN_FIND(sk, cookie) tl_kept(&TL_CONNS, cookie, false)
#define TL_CONN_MAKE(sk, cookie) tl_make_conn(cookie)
#define TL_TEXT_FIND(sk, cookie) tl_kept(&TL_TEXTS, cookie, false)
#define TL_TEXT_MAKE(sk, cookie) tl_kept(&TL_TEXTS, cookie, true)

#define TL_EXCHANGE __u64 cookie
#define TL_GIVE_EXCHANGE(conn, text) (conn)->cookie
#define TL_TAKE_EXCHANGE(conn, text)                   \
	struct tl_conn *conn = TL_CONN_FIND(, cookie); \
	struct tl_text *text = TL_TEXT_FIND(, cookie)

#define TL_STREAM __u64 cookie, __u32 direction
#define TL_GIVE_STREAM(conn, text, direction, chunk) (conn)->cookie, direction
#define TL_GIVE_STREAM_ON(http, text, chunk) cookie, direction
#define TL_TAKE_STREAM(http, text, chunk)                                 \
	struct tl_conn *conn = TL_CONN_FIND(, cookie);                    \
	struct tl_text *text = TL_TEXT_FIND(, cookie);                    \
	struct tl_http *http = conn ? tl_http_of(conn, direction) : NULL; \
	struct tl_chunk *chunk = conn ? &conn->chunk[direction & 1] : NULL

#define TL_CHUNK_OF(conn, direction, chunk) struct tl_chunk *chunk = &conn->chunk[direction & 1]
#else
#define TL_CONN_FIND(sk, cookie) bpf_sk_storage_get(&tl_conns, sk, NULL, 0)
#define TL_CONN_MAKE(sk, cookie) \
	bpf_sk_storage_get(&tl_conns, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE)
#define TL_TEXT_FIND(sk, cookie) bpf_sk_storage_get(&tl_texts, sk, NULL, 0)
#define TL_TEXT_MAKE(sk, cookie) \
	bpf_sk_storage_get(&tl_texts, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE)

#define TL_EXCHANGE struct tl_conn *conn, struct tl_text *text
#define TL_GIVE_EXCHANGE(conn, text) conn, text
#define TL_TAKE_EXCHANGE(conn, text)

#define TL_STREAM struct tl_http *http, struct tl_text *text, struct tl_chunk *chunk
#define TL_GIVE_STREAM(conn, text, direction, chunk) tl_http_of(conn, direction), text, chunk
#define TL_GIVE_STREAM_ON(http, text, chunk) http, text, chunk
#define TL_TAKE_STREAM(http, text, chunk)

#define TL_CHUNK_OF(conn, direction, chunk) \
	struct tl_chunk _##chunk = {};      \
	struct tl_chunk *chunk = &_##chunk
#endif

#endif
