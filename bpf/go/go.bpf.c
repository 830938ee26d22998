// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * go/go.bpf.c - group `go`: which request a goroutine works for, and the requests that the network groups
 * cannot read (docs/go.md).
 *
 *   runtime.newproc1                            a goroutine starts another
 *   net/http.serverHandler.ServeHTTP            a goroutine handles a request
 *   net/http.(*response).finishRequest          it has
 *   net/http.(*persistConn).roundTrip           a goroutine takes a connection for a call
 *   net/http.readTransfer                       the header of the answer was read
 *   http2.(*serverConn).runHandler              the same of HTTP/2, in net/http or golang.org/x/net
 *   http2.(*responseWriter).handlerDone
 *   http2.(*clientStream).writeRequest
 *   http2.(*clientConnReadLoop).handleResponse
 *   http2.(*clientStream).cleanupWriteRequest
 *
 * What gRPC needs is in go_grpc.bpf.h.
 *
 * Plaintext HTTP/1 is read by `observe`, to which this only says whose a request is.
 *
 * Functions are probed where they begin, never where they return: a return probe writes into a stack
 * that Go moves. Arguments are in the registers of Go's ABIInternal (Go 1.17 and later): AX, BX, CX, DI, SI, and
 * the current goroutine in R14. Nothing is changed in the process: only memory is read.
 */
#include "go/calls.h"
#include "evidence/traceparent.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define TL_GO_CONTEXTS_MAX 16 /* contexts between that of a call and that of its request */
#define TL_GO_STARTS_MAX 2048 /* entries of tl_go_starts for each binary */
#define TL_GO_NUMBERS 16 /* of goroutines that a P fetches at once: _GoidCacheBatch */
#define TL_GO_OWN_LEAST 1 /* fields that Go adds to those of a header: Host, or what HTTP/2 has */
#define TL_GO_OWN_MOST 8 /* and User-Agent, Accept-Encoding, Content-Length, Connection, … */
#define TL_GO_GROUPS_MAX 8 /* of a map of headers, of eight pairs each */
#define TL_GO_CONNECTIONS_MAX 4 /* that hold one another */
#define TL_GRPC_UNKNOWN 2 /* the status code of what is not known */
#define TL_GRPC_LAST 16 /* UNAUTHENTICATED */

/* A request's context.Context, by its address -> key of tl_requests. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u64);
} tl_go_contexts SEC(".maps");

/* By tl_process_key() of a goroutine: the last of those that it has started whose number was not known yet. */
struct tl_go_first {
	__u64 p; /* of the runtime, which fetches numbers for it */
	struct tl_goroutine child;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_go_first);
} tl_go_firsts SEC(".maps");

/* What goroutines begin with -> enum tl_go_start. Asked by the programs, answered by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct tl_go_start_key);
	__type(value, __u8);
} tl_go_starts SEC(".maps");

/* How many of tl_go_starts are a binary's: no program is to use up the room of others. Reset by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TL_GO_BINARIES);
	__type(key, __u32);
	__type(value, __u32);
} tl_go_started SEC(".maps");

/*
 * A goroutine without an entry: is it the first of its P's numbers, which could not be told when it began?
 * Its P has not taken others since.
 */
static __always_inline struct tl_goroutine *tl_go_first(const struct tl_go_binary *binary,
							__u64 goroutine, __u64 id)
{
	struct tl_goroutine child = {};
	struct tl_go_first *first;
	__u64 key;

	if (id % TL_GO_NUMBERS != 1 || binary->g_parent_goid == TL_GO_UNKNOWN)
		return NULL;
	key = tl_process_key(tl_go_word(goroutine + binary->g_parent_goid));
	first = bpf_map_lookup_elem(&tl_go_firsts, &key);
	if (!first || tl_go_word(first->p + binary->p_goidcacheend) != id + TL_GO_NUMBERS)
		return NULL;
	child = first->child;
	key = tl_process_key(id);
	bpf_map_update_elem(&tl_goroutines, &key, &child, BPF_ANY);
	return bpf_map_lookup_elem(&tl_goroutines, &key);
}

/* What the goroutine works for, if that goes on. */
static __always_inline struct tl_goroutine *tl_go_works(const struct tl_go_binary *binary,
							__u64 goroutine)
{
	__u64 id = tl_go_id(binary, goroutine), key = tl_process_key(id);
	struct tl_goroutine *known;

	if (!id)
		return NULL;
	known = bpf_map_lookup_elem(&tl_goroutines, &key);
	if (!known)
		known = tl_go_first(binary, goroutine, id);
	if (!known || !bpf_map_lookup_elem(&tl_requests, &known->request))
		return NULL;
	return known;
}

/* May one that begins with `function`, a Go function value, be taken to go on with the same work? */
static __always_inline bool tl_go_inherits(const struct tl_go_binary *binary, __u32 index,
					   __u64 function, __u64 here)
{
	struct tl_go_start_key key = { .binary = index };
	__u8 fresh = TL_GO_START_NEW;
	__u32 *started;
	__u8 *start;

	key.pc = tl_go_word(function) - (here - binary->newproc_at);
	start = bpf_map_lookup_elem(&tl_go_starts, &key);
	if (!start) {
		started = bpf_map_lookup_elem(&tl_go_started, &index);
		if (!started || *started >= TL_GO_STARTS_MAX ||
		    bpf_map_update_elem(&tl_go_starts, &key, &fresh, BPF_NOEXIST))
			tl_count(TL_FULL_GO_STARTS);
		else
			__sync_fetch_and_add(started, 1);
		return false;
	}
	if (*start == TL_GO_START_RECEIVES)
		tl_count(TL_GO_CHILD_RECEIVES);
	return *start == TL_GO_START_INHERITS;
}

/*
 * newproc1(fn *funcval, callergp *g, …): on the stack of the processor, whose goroutine is R14. The new
 * goroutine gets the next number of those that its P has in store, or the first of 16 that it fetches.
 */
SEC("uprobe")
int tl_go_starts_another(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_goroutine *parent, child = {};
	struct tl_go_first first = {};
	__u64 key, p, stored[2] = {};
	__u32 index;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	parent = tl_go_works(binary, ctx->bx);
	if (!parent || !tl_go_inherits(binary, index, ctx->ax, ctx->ip))
		return 0;
	if (parent->depth >= TL_GO_DEPTH_MAX) {
		tl_count(TL_GO_TOO_DEEP);
		return 0;
	}
	child.request = parent->request;
	child.depth = parent->depth + 1;
	p = tl_go_word(tl_go_word(ctx->r14 + binary->g_m) + binary->m_p);
	if (!p || bpf_probe_read_user(&stored[0], 8, (void *)(p + binary->p_goidcache)) ||
	    bpf_probe_read_user(&stored[1], 8, (void *)(p + binary->p_goidcacheend))) {
		tl_count(TL_GO_CHILD_UNKNOWN);
		return 0;
	}
	if (stored[0] < stored[1]) {
		key = tl_process_key(stored[0]);
		bpf_map_update_elem(&tl_goroutines, &key, &child, BPF_ANY);
		return 0;
	}
	if (binary->g_parent_goid == TL_GO_UNKNOWN) {
		tl_count(TL_GO_CHILD_UNKNOWN);
		return 0;
	}
	first.p = p;
	first.child = child;
	key = tl_process_key(tl_go_id(binary, ctx->bx));
	bpf_map_update_elem(&tl_go_firsts, &key, &first, BPF_ANY);
	return 0;
}

/* The address of a *Request's context.Context, or 0. */
static __always_inline __u64 tl_go_context(const struct tl_go_binary *binary, __u64 request)
{
	if (binary->request_ctx == TL_GO_UNKNOWN)
		return 0;
	return tl_go_word(request + binary->request_ctx + 8);
}

/*
 * The request whose context, or one that was made of it, is at `context`. Contexts of the library
 * begin with the one that they were made of, an interface whose second word is its address.
 */
static __always_inline __u64 tl_go_context_request(__u64 context)
{
	__u64 *request, key;
	int i;

	for (i = 0; i < TL_GO_CONTEXTS_MAX && context; i++) {
		key = tl_go_object_key(context);
		request = bpf_map_lookup_elem(&tl_go_contexts, &key);
		if (request && bpf_map_lookup_elem(&tl_requests, request))
			return *request;
		context = tl_go_word(context + 8);
	}
	return 0;
}

/*
 * The TCP socket of a file descriptor of the current process, or NULL. Not to be trusted but by
 * reading it.
 */
static __always_inline struct sock *tl_go_sock(__u32 fd)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **files = BPF_CORE_READ(table, fd), *file = NULL;
	struct socket *socket;
	struct sock *sk;

	if (fd >= BPF_CORE_READ(table, max_fds) ||
	    bpf_probe_read_kernel(&file, sizeof(file), files + fd) || !file)
		return NULL;
	socket = BPF_CORE_READ(file, private_data);
	/* only a socket leads back to its file */
	if (!socket || BPF_CORE_READ(socket, file) != file)
		return NULL;
	sk = BPF_CORE_READ(socket, sk);
	return BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP ? sk : NULL;
}

/*
 * The socket of a connection, or NULL. `connection` is the address of a net.Conn, which may hold another
 * one that it begins with, as a *tls.Conn does. `moved`: how far from where it was linked to the program
 * is.
 */
static __always_inline struct sock *tl_go_socket(const struct tl_go_binary *binary, __u64 moved,
						 __u64 connection)
{
	__u64 held[2]; /* an interface: of which type, and where */
	int i;

	for (i = 0; i < TL_GO_CONNECTIONS_MAX; i++) {
		if (bpf_probe_read_user(held, sizeof(held), (void *)connection))
			return NULL;
		if (tl_go_word(held[0] + 8) == binary->tcp_conn_type + moved)
			return tl_go_sock(
				(__u32)tl_go_word(tl_go_word(held[1]) + binary->fd_sysfd));
		connection = held[1];
	}
	return NULL;
}

static __always_inline __u64 tl_go_cookie(struct sock *sk)
{
	return sk ? BPF_CORE_READ(sk, __sk_common.skc_cookie.counter) : 0;
}

/* Up to `max` bytes, a power of two, of the string whose header is at `address`. Returns its length. */
static __always_inline __u32 tl_go_string(char *to, __u32 max, __u64 address)
{
	__u64 string[2] = {}; /* where, and how long */
	__u32 n;

	if (bpf_probe_read_user(string, sizeof(string), (void *)address) || !string[1] ||
	    string[1] > 65535)
		return 0;
	n = string[1] < max ? string[1] : max;
	if (bpf_probe_read_user(to, tl_length(n, max), (void *)string[0]))
		return 0;
	return string[1];
}

/*
 * The length of a header's name if it is one of ours, in whichever case, else 0. `*names` counts those
 * that are there and could be read.
 */
static __always_inline __u32 tl_go_name(__u64 key, __u32 *names)
{
	__u64 string[2] = {};
	char name[16] __attribute__((aligned(8))) = {};
	__u64 *words = (__u64 *)name;

	/* of one that was deleted from a map of buckets the length stays */
	if (bpf_probe_read_user(string, sizeof(string), (void *)key) || !string[0] || !string[1])
		return 0;
	if (string[1] != 10 && string[1] != 11) {
		*names += 1;
		return 0;
	}
	if (string[1] == 11) {
		if (bpf_probe_read_user(name, 11, (void *)string[0]))
			return 0;
		*names += 1;
		words[0] |= 0x2020202020202020ULL;
		words[1] |= 0x202020ULL;
		return tl_go_is(name, (char[16]){ "traceparent" }) ? 11 : 0;
	}
	if (bpf_probe_read_user(name, 10, (void *)string[0]))
		return 0;
	*names += 1;
	words[0] |= 0x2020202020202020ULL;
	words[1] |= 0x2020ULL;
	return tl_go_is(name, (char[16]){ "tracestate" }) ? 10 : 0;
}

/* The value of a header whose name has `length` letters is a string; it is `alone` if there is one. */
static __always_inline void tl_go_value(struct tl_conn *conn, struct tl_text *text, __u32 length,
					__u64 string, bool alone)
{
	struct tl_http *http = tl_http_of(conn, conn->role == TL_ROLE_SERVER ? TL_IN : TL_OUT);

	if (length == 11) {
		if (!alone || http->flags & TL_HTTP_HAS_TRACEPARENT)
			http->flags |= TL_HTTP_BAD_TRACEPARENT;
		http->flags |= TL_HTTP_HAS_TRACEPARENT;
		text->traceparent_len = tl_go_string(text->traceparent, 64, string);
	} else {
		if (!alone || http->flags & TL_HTTP_HAS_TRACESTATE)
			http->flags |= TL_HTTP_BAD_TRACESTATE;
		http->flags |= TL_HTTP_HAS_TRACESTATE;
		text->tracestate_len = tl_go_string(text->tracestate, TL_TRACESTATE_MAX, string);
		if (text->tracestate_len > TL_TRACESTATE_MAX)
			http->flags |= TL_HTTP_BAD_TRACESTATE;
	}
}

/* A key and the values of a header: is it one of ours? Returns 1 for one that could be read, else 0. */
static __always_inline __u32 tl_go_header(struct tl_conn *conn, struct tl_text *text, __u64 key,
					  __u64 value)
{
	struct tl_http *http = tl_http_of(conn, conn->role == TL_ROLE_SERVER ? TL_IN : TL_OUT);
	__u32 names = 0, length = tl_go_name(key, &names);
	__u64 values[2] = {};

	if (!names)
		return 0;
	if (bpf_probe_read_user(values, sizeof(values), (void *)value))
		return 0;
	http->fields += values[1] < TL_LIMIT_FIELDS ? values[1] : TL_LIMIT_FIELDS;
	if (length && values[1])
		tl_go_value(conn, text, length, values[0], values[1] == 1);
	return names;
}

/* Where the eight pairs of a group of a map are. */
struct tl_go_group {
	__u64 keys;
	__u64 values;
	__u32 key_step;
	__u32 value_step;
};

/*
 * The pairs of a group: one function, so that the verifier walks it once. Returns how many there are.
 */
__noinline int tl_go_pairs(struct tl_conn *conn, struct tl_text *text, struct tl_go_group *group)
{
	int i, n = 0;

	if (!conn || !text || !group)
		return 0;
	for (i = 0; i < 8; i++)
		n += tl_go_header(conn, text, group->keys + i * group->key_step,
				  group->values + i * group->value_step);
	return n;
}

/* Swiss tables: internal/runtime/maps. Keys of pairs that were deleted are zero. True: all was seen. */
static __always_inline bool tl_go_swiss(struct tl_conn *conn, struct tl_text *text, __u64 map)
{
	struct tl_go_group group = { .key_step = 40, .value_step = 40 };
	__u64 head[4] = {}; /* used, seed, directory, its length */
	__u64 groups[2]; /* where, and how many less one */
	__u64 table, seen = 0;
	int i, j;

	if (bpf_probe_read_user(head, sizeof(head), (void *)map))
		return false;
	if (!head[3]) {
		group.keys = head[2] + 8;
		group.values = head[2] + 24;
		seen = head[0] ? tl_go_pairs(conn, text, &group) : 0;
		return seen == head[0];
	}
	for (i = 0; i < 2 && i < head[3]; i++) {
		table = tl_go_word(head[2] + 8 * i);
		if (!table || bpf_probe_read_user(groups, sizeof(groups), (void *)(table + 16)))
			return false;
		for (j = 0; j < TL_GO_GROUPS_MAX && j <= groups[1]; j++) {
			group.keys = groups[0] + 328 * j + 8;
			group.values = groups[0] + 328 * j + 24;
			seen += tl_go_pairs(conn, text, &group);
		}
	}
	return seen == head[0];
}

/*
 * Buckets: runtime/map.go until Go 1.23. Also those that a map that grows has not given up yet, of which
 * some are there twice: all was seen only where there are none.
 */
static __always_inline bool tl_go_buckets(struct tl_conn *conn, struct tl_text *text, __u64 map)
{
	struct tl_go_group group = { .key_step = 16, .value_step = 24 };
	__u64 head[4] = {}; /* count, flags with the logarithm of buckets, buckets, old ones */
	__u64 bucket, seen = 0;
	__u32 n;
	int i, j;

	if (bpf_probe_read_user(head, sizeof(head), (void *)map))
		return false;
	if (!head[0])
		return true;
	n = 1 << (head[1] >> 8 & 7);
	for (i = 0; i < TL_GO_GROUPS_MAX && i < n; i++) {
		bucket = head[2] + 336 * i;
		for (j = 0; j < 2 && bucket; j++) {
			group.keys = bucket + 8;
			group.values = bucket + 136;
			seen += tl_go_pairs(conn, text, &group);
			bucket = tl_go_word(bucket + 328);
		}
	}
	if (!head[3])
		return seen == head[0];
	for (i = 0; i < TL_GO_GROUPS_MAX && i < n / 2; i++) {
		group.keys = head[3] + 336 * i + 8;
		group.values = head[3] + 336 * i + 136;
		tl_go_pairs(conn, text, &group);
	}
	return false;
}

/* A map of header names to their values. True: all of it was seen. */
static __always_inline bool tl_go_headers(const struct tl_go_binary *binary, struct tl_conn *conn,
					  struct tl_text *text, __u64 map)
{
	if (!map)
		return true;
	return binary->swiss_maps ? tl_go_swiss(conn, text, map) : tl_go_buckets(conn, text, map);
}

static __always_inline struct tl_go_exchange *tl_go_make(__u64 key, __u8 role)
{
	struct tl_go_exchange *exchange = tl_go_find(key);
	const void *nothing;
	__u32 zero = 0;

	if (exchange && exchange->conn.flags & TL_CONN_ACTIVE)
		tl_finish(&exchange->conn, &exchange->text,
			  exchange->conn.flags & TL_CONN_GRPC ? TL_GRPC_UNKNOWN : 0, TL_END_CLOSED);
	nothing = bpf_map_lookup_elem(&tl_nothing, &zero);
	if (!nothing)
		return NULL;
	bpf_map_update_elem(&tl_go_exchanges, &key, nothing, BPF_ANY);
	exchange = tl_go_find(key);
	if (!exchange) {
		tl_count(TL_FULL_GO);
		return NULL;
	}
	exchange->conn.role = role;
	exchange->conn.flags = TL_CONN_GO;
	exchange->conn.cgroup_id = bpf_get_current_cgroup_id();
	return exchange;
}

/* Its connection, and that of nobody else at this time if it is `alone` there. */
static __always_inline void tl_go_on(struct tl_conn *conn, struct sock *sk, bool alone)
{
	struct in6_addr local, peer;
	__u16 family;

	if (!sk) {
		tl_count(TL_GO_NO_SOCKET);
		return;
	}
	if (alone)
		conn->socket = tl_go_cookie(sk);
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	BPF_CORE_READ_INTO(&local, sk, __sk_common.skc_v6_rcv_saddr);
	BPF_CORE_READ_INTO(&peer, sk, __sk_common.skc_v6_daddr);
	conn->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	conn->peer_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	tl_copy_address(conn->local_addr, family, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr),
			&local);
	tl_copy_address(conn->peer_addr, family, BPF_CORE_READ(sk, __sk_common.skc_daddr), &peer);
}

/* The exchange at `key` has ended, and makes room for one that lasts. */
static __always_inline void tl_go_end(struct tl_go_exchange *exchange, __u64 key, __u32 status,
				      __u32 end)
{
	if (exchange->conn.role == TL_ROLE_SERVER)
		tl_option_used(exchange->conn.socket);
	tl_finish(&exchange->conn, &exchange->text, status, end);
	bpf_map_delete_elem(&tl_go_exchanges, &key);
}

/* The same of what stands there, if anything does. */
static __always_inline void tl_go_finish(__u64 key, __u32 status, __u32 end)
{
	struct tl_go_exchange *exchange = tl_go_find(key);

	if (exchange)
		tl_go_end(exchange, key, status, end);
}

/*
 * A goroutine has served a request, of which there is no exchange. If it gave way to others, the request itself is
 * still there, and ends.
 */
static __always_inline void tl_go_gave_way(const struct tl_go_binary *binary, __u64 goroutine)
{
	struct tl_goroutine *known = tl_go_works(binary, goroutine);
	struct tl_request *request;
	__u64 key;

	if (!known || known->depth)
		return;
	key = known->request;
	request = bpf_map_lookup_elem(&tl_requests, &key);
	if (!request || !(request->flags & TL_REQUEST_PROBED))
		return;
	tl_count(TL_GO_GAVE_WAY);
	tl_request_end(key);
}

/* The current goroutine has served what stands at `key`. */
static __always_inline void tl_go_has_served(const struct tl_go_binary *binary, __u64 goroutine,
					     __u64 key, __u32 status)
{
	struct tl_go_exchange *exchange = tl_go_find(key);

	if (exchange)
		tl_go_end(exchange, key, status, TL_END_COMPLETE);
	else
		tl_go_gave_way(binary, goroutine);
}

/* The context leads to the request `of`. */
static __always_inline void tl_go_give_context(__u64 context, __u64 of)
{
	__u64 key = tl_go_object_key(context);

	if (context)
		bpf_map_update_elem(&tl_go_contexts, &key, &of, BPF_ANY);
}

/* The current goroutine takes up a request, whose text is there, with a context for its calls. */
static __always_inline void tl_go_takes_up(const struct tl_go_binary *binary, __u64 goroutine,
					   struct tl_go_exchange *exchange, __u64 context)
{
	struct tl_goroutine work = {};
	struct tl_conn *conn = &exchange->conn;
	__u64 id = tl_go_id(binary, goroutine), key;

	tl_begin_server(conn, &exchange->text);
	conn->pid = bpf_get_current_pid_tgid() >> 32;
	if (!conn->request)
		return;
	tl_go_give_context(context, conn->request);
	if (!id)
		return;
	key = tl_process_key(id);
	work.request = conn->request;
	bpf_map_update_elem(&tl_goroutines, &key, &work, BPF_ANY);
}

/* The current goroutine serves a request that `observe` cannot read. */
static __always_inline void tl_go_serves(const struct tl_go_binary *binary, __u64 goroutine,
					 struct tl_go_exchange *exchange, __u64 request)
{
	struct tl_conn *conn = &exchange->conn;
	struct tl_text *text = &exchange->text;

	if (tl_go_word(request + binary->request_tls))
		conn->flags |= TL_CONN_TLS;
	text->method_len =
		tl_go_string(text->method, TL_METHOD_MAX, request + binary->request_method);
	text->target_len = tl_go_string(text->target, TL_TARGET_MAX, request + binary->request_uri);
	text->host_len = tl_go_string(text->host, TL_HOST_MAX, request + binary->request_host);
	tl_go_headers(binary, conn, text, tl_go_word(request + binary->request_header));
	tl_go_takes_up(binary, goroutine, exchange, tl_go_context(binary, request));
}

/* serverHandler.ServeHTTP(handler, rw ResponseWriter, req *Request); rw is a *response or of HTTP/2 */
SEC("uprobe")
int tl_go_serve(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_go_exchange *exchange;
	struct tl_goroutine *goroutine;
	__u64 connection;
	__u32 index;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	goroutine = tl_go_works(binary, ctx->r14);
	if (goroutine) {
		tl_go_give_context(tl_go_context(binary, ctx->di), goroutine->request);
		return 0;
	}
	if (!tl_go_word(ctx->di + binary->request_tls) ||
	    (__u32)tl_go_word(ctx->di + binary->request_proto_major) != 1)
		return 0;
	exchange = tl_go_make(tl_go_object_key(ctx->cx), TL_ROLE_SERVER);
	if (!exchange)
		return 0;
	exchange->conn.in.minor = 1;
	connection = tl_go_word(ctx->cx + binary->response_conn) + binary->conn_rwc;
	tl_go_on(&exchange->conn, tl_go_socket(binary, ctx->ip - binary->serve_at, connection),
		 true);
	tl_go_serves(binary, ctx->r14, exchange, ctx->di);
	return 0;
}

/* (*response).finishRequest(w), of plaintext, too: what was not said is 200 */
SEC("uprobe")
int tl_go_served(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	__u32 index, status;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	status = tl_go_word(ctx->ax + binary->response_status);
	tl_go_has_served(binary, ctx->r14, tl_go_object_key(ctx->ax), status ? status : 200);
	return 0;
}

/* (*serverConn).runHandler(sc, rw *responseWriter, req *Request, handler), in a goroutine for each */
SEC("uprobe")
int tl_go_h2_serve(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_go_exchange *exchange;
	__u32 index;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	exchange = tl_go_make(tl_go_object_key(tl_go_word(ctx->bx + binary->h2_writer_state)),
			      TL_ROLE_SERVER);
	if (!exchange)
		return 0;
	exchange->conn.http_major = 2;
	tl_go_on(&exchange->conn,
		 tl_go_socket(binary, ctx->ip - binary->run_handler_at,
			      ctx->ax + binary->h2_server_conn),
		 false);
	tl_go_serves(binary, ctx->r14, exchange, ctx->cx);
	return 0;
}

/* (*responseWriter).handlerDone(w): its state is given up then */
SEC("uprobe")
int tl_go_h2_served(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	__u32 index, status;
	__u64 state;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	state = tl_go_word(ctx->ax + binary->h2_writer_state);
	status = tl_go_word(state + binary->h2_state_status);
	tl_go_has_served(binary, ctx->r14, tl_go_object_key(state), status ? status : 200);
	return 0;
}

/*
 * For which request does the current goroutine make a call with this context? A key of tl_requests, or 0.
 */
static __always_inline __u64 tl_go_caller(const struct tl_go_binary *binary, __u64 goroutine,
					  __u64 context, __u8 *evidence)
{
	struct tl_goroutine *known;
	__u64 key;

	*evidence = TL_EVIDENCE_CONTEXT;
	key = tl_go_context_request(context);
	if (key)
		return key;
	*evidence = TL_EVIDENCE_GOROUTINE;
	known = tl_go_works(binary, goroutine);
	return known ? known->request : 0;
}

/*
 * The path of a URL and, behind a question mark, its query: what is asked for. To be taken first: what is
 * too long runs over the fields behind it.
 */
static __always_inline void tl_go_target(struct tl_text *text, __u64 path, __u64 query)
{
	__u32 n = tl_go_string(text->target, TL_TARGET_MAX, path), left;
	__u64 string[2] = {};

	if (!n) {
		text->target[0] = '/';
		n = 1;
	}
	text->target_len = n;
	if (n >= TL_TARGET_MAX - 1 || bpf_probe_read_user(string, sizeof(string), (void *)query) ||
	    !string[1] || string[1] > 65535 - TL_TARGET_MAX)
		return;
	text->target_len = n + 1 + string[1];
	text->target[n & (TL_TARGET_MAX - 1)] = '?';
	n++;
	left = string[1] < TL_TARGET_MAX ? string[1] : TL_TARGET_MAX;
	bpf_probe_read_user(text->target + (n & (TL_TARGET_MAX - 1)),
			    tl_length(left, TL_TARGET_MAX), (void *)string[0]);
}

/*
 * What the connection sends next is this request: its context goes beside it (packets). Another goroutine
 * writes, on whatever thread.
 */
static __always_inline void tl_go_sends(struct tl_conn *conn)
{
	struct tl_tls_out out = { .pending = 1 };
	__u64 socket = conn->socket;

	if (!socket || conn->out.flags & TL_HTTP_HAS_TRACEPARENT)
		return;
	out.socket = socket;
	__builtin_memcpy(out.trace_id, conn->trace_id, 16);
	__builtin_memcpy(out.span_id, conn->span_id, 8);
	out.trace_flags = conn->trace_flags;
	bpf_map_update_elem(&tl_socket_outs, &socket, &out, BPF_ANY);
}

/* The current goroutine makes a call, whose text is there, with a context. */
static __always_inline void tl_go_calls_with(const struct tl_go_binary *binary, __u64 goroutine,
					     struct tl_go_exchange *exchange, __u64 context)
{
	struct tl_http *http = &exchange->conn.out;
	struct tl_conn *conn = &exchange->conn;
	int refused = TL_ROOT_NO_CONTEXT;
	struct tl_parent parent;
	__u8 evidence;
	__u64 key;

	conn->pid = bpf_get_current_pid_tgid() >> 32;
	key = tl_go_caller(binary, goroutine, context, &evidence);
	if (key)
		refused = tl_take_parent(key, evidence, &parent);
	if (refused < 0)
		tl_count_parent(evidence);
	else
		tl_count(refused);
	tl_begin_client(conn, &exchange->text, refused < 0 ? &parent : NULL);
	if (!(http->flags & (TL_HTTP_HAS_TRACEPARENT | TL_HTTP_HAS_TRACESTATE)))
		tl_inherit_tracestate(&exchange->text, refused < 0 ? &parent : NULL);
}

/*
 * May a context be written into the header of this call? `seen`: all that is in it has been.
 */
static __always_inline bool tl_go_may_write(const struct tl_conn *conn, bool seen)
{
	__s32 fields = conn->out.fields;

	if (conn->out.flags & TL_HTTP_HAS_TRACEPARENT)
		return false;
	if (!seen) {
		tl_count(TL_GO_WRITE_UNPROVEN);
		return false;
	}
	if (conn->out.flags & TL_HTTP_HAS_TRACESTATE) {
		tl_count(TL_SKIP_OWN_TRACESTATE);
		return false;
	}
	if (conn->out.method == TL_METHOD_CONNECT) {
		tl_count(TL_SKIP_TUNNEL);
		return false;
	}
	/* how many bytes its values have is not looked at */
	if (tl_limits_matter() &&
	    tl_reaches(fields + TL_GO_OWN_LEAST, fields + TL_GO_OWN_MOST + 2, TL_LIMIT_FIELDS)) {
		tl_count(TL_SKIP_NEAR_LIMIT);
		return false;
	}
	return true;
}

/* The current goroutine is going to write the header of a call, or not one that is ours. */
static __always_inline void tl_go_writes(const struct tl_go_binary *binary, __u64 goroutine,
					 const struct tl_go_writing *writing)
{
	__u64 id = tl_go_id(binary, goroutine), key = tl_process_key(id);

	if (writing && id)
		bpf_map_update_elem(&tl_go_writers, &key, writing, BPF_ANY);
	else
		bpf_map_delete_elem(&tl_go_writers, &key);
}

/* The current goroutine makes a call that `observe` cannot read. True: all of its header was seen. */
static __always_inline bool tl_go_calls_on(const struct tl_go_binary *binary, __u64 goroutine,
					   struct tl_go_exchange *exchange, __u64 request)
{
	struct tl_text *text = &exchange->text;
	__u64 url = tl_go_word(request + binary->request_url);
	bool seen;

	tl_go_target(text, url + binary->url_path, url + binary->url_raw_query);
	text->method_len =
		tl_go_string(text->method, TL_METHOD_MAX, request + binary->request_method);
	if (!text->method_len) {
		__builtin_memcpy(text->method, "GET", 3);
		text->method_len = 3;
	}
	text->host_len = tl_go_string(text->host, TL_HOST_MAX, request + binary->request_host);
	if (!text->host_len)
		text->host_len = tl_go_string(text->host, TL_HOST_MAX, url + binary->url_host);
	seen = tl_go_headers(binary, &exchange->conn, text,
			     tl_go_word(request + binary->request_header));
	tl_go_calls_with(binary, goroutine, exchange, tl_go_context(binary, request));
	return seen;
}

/* (*persistConn).roundTrip(pc, req *transportRequest), which begins with its *Request */
SEC("uprobe")
int tl_go_round_trip(struct pt_regs *ctx)
{
	struct tl_go_call call = { .fresh = 1 };
	const struct tl_go_binary *binary;
	struct tl_go_exchange *exchange;
	struct tl_go_writing writing = { .kind = TL_GO_WRITING_BUFFER };
	struct sock *sk;
	__u64 socket, request, writer = 0;
	__u32 index;
	bool seen;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	if (binary->writes & TL_GO_WRITES_HTTP1) {
		/* whatever stood for a writer of this address */
		writer = tl_go_object_key(tl_go_word(ctx->ax + binary->persist_conn_bw));
		bpf_map_delete_elem(&tl_go_written, &writer);
	}
	/* where several calls wait for one connection, who has it is not known when they begin */
	if (binary->persist_conn_is_client_conn != TL_GO_UNKNOWN &&
	    (__u8)tl_go_word(ctx->ax + binary->persist_conn_is_client_conn)) {
		tl_count(TL_GO_CLIENT_CONN);
		return 0;
	}
	request = tl_go_word(ctx->bx);
	sk = tl_go_socket(binary, ctx->ip - binary->round_trip_at,
			  ctx->ax + binary->persist_conn_conn);
	if (tl_go_word(ctx->ax + binary->persist_conn_tls_state)) {
		writing.exchange = tl_go_object_key(tl_go_word(ctx->ax + binary->persist_conn_br));
		exchange = tl_go_make(writing.exchange, TL_ROLE_CLIENT);
		if (!exchange)
			return 0;
		exchange->conn.flags |= TL_CONN_TLS;
		exchange->conn.out.minor = 1;
		tl_go_on(&exchange->conn, sk, true);
		seen = tl_go_calls_on(binary, ctx->r14, exchange, request);
		tl_go_sends(&exchange->conn);
		if (binary->writes & TL_GO_WRITES_HTTP1 && tl_go_may_write(&exchange->conn, seen)) {
			writing.span = tl_go_span(exchange);
			writing.object = tl_go_word(request + binary->request_header);
			bpf_map_update_elem(&tl_go_written, &writer, &writing, BPF_ANY);
		}
		return 0;
	}
	socket = tl_go_cookie(sk);
	if (!socket) {
		tl_count(TL_GO_NO_SOCKET);
		return 0;
	}
	call.request =
		tl_go_caller(binary, ctx->r14, tl_go_context(binary, request), &call.evidence);
	bpf_map_update_elem(&tl_go_calls, &socket, &call, BPF_ANY);
	return 0;
}

/* readTransfer(msg any, r *bufio.Reader): of the answer to a call, or of a request that came */
SEC("uprobe")
int tl_go_answered(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	__u32 index, status;

	binary = tl_go_enter(ctx, &index);
	if (!binary || ctx->ax != binary->response_type + (ctx->ip - binary->read_transfer_at))
		return 0;
	status = tl_go_word(ctx->bx + binary->client_response_status);
	if (status >= 200 || status == 101)
		tl_go_finish(tl_go_object_key(ctx->cx), status, TL_END_COMPLETE);
	return 0;
}

/* (*clientStream).writeRequest(cs, req *Request, …), in a goroutine that the caller has started */
SEC("uprobe")
int tl_go_h2_call(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_go_writing writing = { .kind = TL_GO_WRITING_STREAM };
	struct tl_go_exchange *exchange;
	__u64 connection;
	__u32 index;
	bool seen;

	binary = tl_go_enter(ctx, &index);
	if (!binary)
		return 0;
	writing.exchange = tl_go_object_key(ctx->ax);
	writing.object = ctx->ax;
	exchange = tl_go_make(writing.exchange, TL_ROLE_CLIENT);
	if (!exchange)
		return 0;
	connection = tl_go_word(ctx->ax + binary->h2_stream_conn);
	if (tl_go_word(connection + binary->h2_client_tls_state))
		exchange->conn.flags |= TL_CONN_TLS;
	exchange->conn.http_major = 2;
	tl_go_on(&exchange->conn,
		 tl_go_socket(binary, ctx->ip - binary->write_request_at,
			      connection + binary->h2_client_conn),
		 false);
	seen = tl_go_calls_on(binary, ctx->r14, exchange, ctx->bx);
	if (binary->writes & TL_GO_WRITES_HTTP2 && tl_go_may_write(&exchange->conn, seen)) {
		writing.span = tl_go_span(exchange);
		tl_go_writes(binary, ctx->r14, &writing);
	}
	return 0;
}

/* Three digits. */
static __always_inline __u16 tl_go_status(const char *digits)
{
	return (digits[0] - '0') * 100 + (digits[1] - '0') * 10 + digits[2] - '0';
}

/*
 * (*clientConnReadLoop).handleResponse(rl, cs *clientStream, f *MetaHeadersFrame): the fields of a frame are
 * a slice of a name and a value each; those that begin with a colon come first
 */
SEC("uprobe")
int tl_go_h2_answer(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_go_exchange *exchange;
	__u64 field[4], fields;
	char name[16] __attribute__((aligned(8))) = {};
	__u32 index;

	binary = tl_go_enter(ctx, &index);
	exchange = binary ? tl_go_find(tl_go_object_key(ctx->bx)) : NULL;
	if (!exchange)
		return 0;
	fields = tl_go_word(ctx->cx + binary->h2_fields);
	if (bpf_probe_read_user(field, sizeof(field), (void *)fields) || field[1] != 7 ||
	    field[3] != 3 || bpf_probe_read_user(name, 7, (void *)field[0]) ||
	    !tl_go_is(name, (char[16]){ ":status" }) ||
	    bpf_probe_read_user(name, 3, (void *)field[2]))
		return 0;
	exchange->conn.in.status = tl_go_status(name);
	return 0;
}

/* (*clientStream).cleanupWriteRequest(cs, err): the end, in whichever way */
SEC("uprobe")
int tl_go_h2_called(struct pt_regs *ctx)
{
	const struct tl_go_binary *binary;
	struct tl_go_exchange *exchange;
	__u32 index, status;

	binary = tl_go_enter(ctx, &index);
	exchange = binary ? tl_go_find(tl_go_object_key(ctx->ax)) : NULL;
	if (!exchange)
		return 0;
	status = exchange->conn.in.status;
	tl_go_finish(tl_go_object_key(ctx->ax), status, status ? TL_END_COMPLETE : TL_END_CLOSED);
	return 0;
}

#include "go/grpc.h"
