// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * runtimes/python.bpf.c - group `python`: which context (contextvars) of Python was copied from
 * which (docs/operator/python.md).
 *
 *   PyContext_CopyCurrent    returns a copy of the current context
 *   PyContext_Type.tp_dealloc
 *                            a context ends; its address may be used again at once
 *   greenlet::UserGreenlet::UserGreenlet
 *                            a greenlet is made
 *   greenlet::Greenlet::g_switchstack_success
 *                            a thread has begun to run another greenlet
 *   UVStream._initiate_write
 *                            uvloop before 0.23 keeps what a task writes, until the end of the turn
 *   sched_process_exit       the agent ends, and with it the probes
 *
 * The programs only read the memory of the process.
 */
#include "core/settings.h"
#include "runtimes/job.h"
#include "runtimes/python_kept.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define TL_PAGE_BYTES 4096
#define TL_PY_CPU_BITS 8
/* uvloop's UVHandle, and what libuv has of it: uv_handle_t.data, uv_stream_t.io_watcher.fd */
#define TL_UV_HANDLE_AT 24
#define TL_UV_DATA_AT 0
#define TL_UV_FD_AT 184

/* What is known of the current process, which has made `context`. It is noted when it is new. */
static __always_inline struct tl_runtime *tl_py_runtime(const struct tl_python_binary *binary,
							__u32 index, __u64 context)
{
	__u32 pid = tl_process_id();
	__u64 base = tl_user_word(context + TL_PY_TYPE_AT) - binary->type_at;
	struct tl_runtime *known = tl_runtime_of(pid);
	struct tl_runtime fresh = {};

	/* no id: in a pid namespace that the agent does not see */
	if (!pid || base & (TL_PAGE_BYTES - 1)) {
		tl_count(TL_PYTHON_UNREADABLE);
		return NULL;
	}
	if (known && known->base == base && known->kind == TL_RUNTIME_PYTHON) {
		if (known->binary == index)
			return known;
		/* of an earlier agent: what the process runs is still known */
		tl_runtime_unnote(known, TL_RUNTIME_TURNED);
		known->binary = index;
		return known;
	}
	fresh.base = base;
	fresh.binary = index;
	fresh.kind = TL_RUNTIME_PYTHON;
	fresh.born = tl_process_born();
	bpf_map_update_elem(&tl_runtimes, &pid, &fresh, BPF_ANY);
	return bpf_map_lookup_elem(&tl_runtimes, &pid);
}

/*
 * Has the current thread just read a request for the context at `place`? Either it has read in this
 * very context, or the thread has only its own. Or it has read before it has entered this context,
 * and this is a context in which a protocol is told of what was read (uvloop): all its copies were
 * made right after reads.
 */
static __always_inline bool tl_py_just_read(const struct tl_runtime *runtime,
					    struct tl_py_thread *thread, struct tl_py_node *parent,
					    const struct tl_py_place *place)
{
	bool follows, known;

	if (!thread->socket)
		follows = false;
	else if (place->entered ? thread->context == place->context :
				  !thread->waits || !thread->enters)
		return true;
	else
		follows = place->entered &&
			  tl_user_word(place->context + TL_PY_PREVIOUS_AT) == thread->context;
	if (!parent)
		return false;
	if (!follows || (thread->inner && thread->inner != place->context)) {
		/* the agent has begun in the middle of a turn: what was read in it is not known */
		if (runtime->flags & TL_RUNTIME_TURNED)
			parent->flags |= TL_PY_OTHERWISE;
		return false;
	}
	/*
	 * The context of uvloop's only listener needs no learning: where the protocol copies when a
	 * connection begins, it has done so before the first read. Of several, another one's
	 * connection may have been read before.
	 */
	known = parent->learnt >= TL_PY_LEARNT ||
		(parent->flags & TL_PY_LISTENS && (thread->listens < 2 || !thread->accepts));
	/* several copies of one callback count once */
	if (!thread->inner && parent->learnt < TL_PY_LEARNT)
		parent->learnt++;
	thread->inner = place->context;
	return known && !(parent->flags & (TL_PY_OTHERWISE | TL_PY_SHARED)) && !parent->owner;
}

/*
 * Is this copy of the listener's context for the connection that uvloop tells the protocol of? Those
 * that the protocol makes when it is told are. Others may follow in the same turn, for the end of
 * another connection: so no more are taken than any connection had. The first one had no other.
 */
static __always_inline bool tl_py_begins(struct tl_py_thread *thread,
					 const struct tl_py_node *parent, __u64 number)
{
	if (!thread->meets || thread->meets_in != number)
		return false;
	if (thread->copies < 255)
		thread->copies++;
	return !parent->most || thread->copies <= parent->most;
}

/* A node for a context of unknown origin, to learn of it; 0 where it cannot be made. */
static __always_inline __u64 tl_py_insert(__u64 address, struct tl_py_node *node)
{
	__u64 key = tl_process_key(address >> 4);
	__u64 number = bpf_ktime_get_ns() << TL_PY_CPU_BITS |
		       (bpf_get_smp_processor_id() & ((1 << TL_PY_CPU_BITS) - 1));

	if (bpf_map_update_elem(&tl_py_nodes, &number, node, BPF_ANY) ||
	    bpf_map_update_elem(&tl_py_contexts, &key, &number, BPF_ANY))
		return 0;
	return number;
}

/* Is this address in the code of Python itself? Its data lies behind its code. */
static __always_inline bool tl_py_calls(const struct tl_python_binary *binary, __u64 base,
					__u64 address)
{
	return address - base < binary->type_at;
}

SEC("uretprobe")
int BPF_KRETPROBE(tl_py_copied, __u64 child)
{
	const struct tl_python_binary *binary;
	struct tl_runtime *runtime;
	struct tl_py_node node = {}, *parent;
	struct tl_py_thread *thread;
	struct tl_py_place place;
	__u64 state, context, number;
	__u32 index = bpf_get_attach_cookie(ctx);

	tl_own_stack(ctx);
	if (!child || !tl_probe_traced())
		return 0;
	binary = tl_py_binary(index);
	if (!binary)
		return 0;
	runtime = tl_py_runtime(binary, index, child);
	if (!runtime)
		return 0;
	state = tl_py_thread_state(binary, runtime->base);
	/* before 3.12 a thread's slot keeps the first interpreter's, whichever runs */
	if (state && binary->current_at &&
	    tl_user_word(runtime->base + binary->runtime_at + binary->current_at) != state) {
		tl_count(TL_PYTHON_INTERPRETERS);
		return 0;
	}
	context = state ? tl_user_word(state + binary->context_at) : 0;
	if (!context || !tl_py_is_context(binary, runtime->base, context)) {
		tl_count(TL_PYTHON_UNREADABLE);
		return 0;
	}
	thread = tl_py_thread_now(true);
	tl_py_find_place(context, thread, &place);
	node.binary = index;
	parent = tl_py_node(place.node);
	if (place.entered && !parent && tl_py_is_own(context, index))
		place.entered = false;
	if (place.entered)
		tl_runtime_note(runtime, TL_RUNTIME_TASKS);
	if (thread && place.entered) {
		thread->enters = 1;
		if (!parent) {
			place.node = tl_py_insert(context, &node);
			parent = tl_py_node(place.node);
		}
	}
	node.parent = place.node;
	if (thread && parent && tl_py_begins(thread, parent, place.node)) {
		node.owner = thread->meets;
	} else if (thread && tl_py_just_read(runtime, thread, parent, &place)) {
		node.owner = thread->socket;
		node.request = thread->request;
	} else if (place.node) {
		node.request = tl_py_request_of(place.node, false);
		if (parent && !parent->request)
			tl_py_goes_on(parent);
	}
	if (tl_py_number(child))
		tl_count(TL_PYTHON_UNFREED);
	number = tl_py_insert(child, &node);
	if (thread) {
		thread->copied = tl_py_calls(binary, runtime->base, PT_REGS_IP(ctx)) ? 0 : number;
		thread->stack = PT_REGS_SP(ctx);
	}
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(tl_py_freed, __u64 context)
{
	__u64 key;

	tl_own_stack(ctx);
	key = tl_process_key(context >> 4);
	bpf_map_delete_elem(&tl_py_contexts, &key);
	return 0;
}

/*
 * The current process runs greenlets. It may have copied no context yet, and then nothing else is
 * known of it.
 */
static __always_inline void tl_py_has_greenlets(__u32 index)
{
	__u32 pid = tl_process_id();
	struct tl_runtime *known = tl_runtime_of(pid);
	struct tl_runtime fresh = {};

	if (!pid)
		return;
	if (known && tl_py_binary(known->binary)) {
		tl_runtime_note(known, TL_RUNTIME_TASKS);
		return;
	}
	fresh.flags = TL_RUNTIME_TASKS;
	fresh.binary = index;
	fresh.kind = TL_RUNTIME_PYTHON;
	fresh.born = tl_process_born();
	bpf_map_update_elem(&tl_runtimes, &pid, &fresh, BPF_ANY);
}

/*
 * A greenlet inherits no request: it may be a worker of a pool, which goes on to work for others
 * while the request that has started it is still open.
 */
SEC("uprobe")
int BPF_KPROBE(tl_py_spawned, __u64 greenlet)
{
	struct tl_py_node node = {};

	tl_own_stack(ctx);
	if (!tl_probe_traced())
		return 0;
	node.binary = bpf_get_attach_cookie(ctx);
	tl_py_has_greenlets(node.binary);
	tl_py_insert(greenlet, &node);
	return 0;
}

/* The function returns an object: its first argument is where to, the second one the greenlet. */
SEC("uprobe")
int BPF_KPROBE(tl_py_switched, __u64 to, __u64 greenlet)
{
	struct tl_py_thread *thread;

	tl_own_stack(ctx);
	if (!tl_probe_traced())
		return 0;
	tl_py_has_greenlets(bpf_get_attach_cookie(ctx));
	thread = tl_py_thread_now(true);
	if (!thread)
		return 0;
	thread->greenlet = greenlet;
	thread->socket = 0;
	return 0;
}

/*
 * What the current unit writes to `socket` is kept: claims the connection's next request for the
 * unit's. Where units write to one connection before it is sent, nobody knows whose request is sent, and
 * a call that comes after its request's answer may be sent before.
 */
static __always_inline void tl_py_keeps(const struct tl_py_thread *thread, __u64 socket, __u64 key)
{
	struct tl_claim *claim = bpf_map_lookup_elem(&tl_claims, &socket);
	struct tl_claim fresh = { .evidence = TL_EVIDENCE_PYTHON, .fresh = 1 };

	if (key < TL_COUNTERS ||
	    (key == thread->answers && tl_py_may_wait(thread, thread->answers_in)))
		key = 0;
	if (claim && claim->fresh && claim->request != key && tl_py_may_wait(thread, claim->turn))
		key = 0;
	fresh.request = key;
	fresh.turn = thread->turn;
	bpf_map_update_elem(&tl_claims, &socket, &fresh, BPF_ANY);
}

SEC("uprobe")
int BPF_KPROBE(tl_py_queued, __u64 stream)
{
	const struct tl_runtime *runtime;
	const struct tl_served *served;
	struct tl_py_thread *thread;
	__u64 handle, socket;
	__u32 number = 0;

	tl_own_stack(ctx);
	if (!tl_probe_traced())
		return 0;
	runtime = tl_runtime_of(tl_process_id());
	thread = tl_py_thread_now(false);
	if (!runtime || runtime->kind != TL_RUNTIME_PYTHON || !thread)
		return 0;
	handle = tl_user_word(stream + TL_UV_HANDLE_AT);
	/* libuv's handle leads back to uvloop's */
	if (!handle || tl_user_word(handle + TL_UV_DATA_AT) != stream)
		return 0;
	bpf_probe_read_user(&number, sizeof(number), (void *)(handle + TL_UV_FD_AT));
	socket = tl_descriptor_socket(number);
	if (!socket)
		return 0;
	served = bpf_map_lookup_elem(&tl_serving, &socket);
	if (served) {
		thread->answers = served->request;
		thread->answers_in = thread->turn;
	} else {
		tl_py_keeps(thread, socket, tl_python_request(runtime));
	}
	return 0;
}

/* When the last thread of the agent ends, its probes still run: they are detached after this. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(tl_py_agent_end, struct task_struct *task)
{
	__u32 zero = 0, *agent = bpf_map_lookup_elem(&tl_py_agent, &zero);

	if (task->signal->live.counter)
		return 0;
	if (agent && *agent == (__u32)tl_process_id())
		*agent = 0;
	tl_job_exits();
	return 0;
}
