/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * runtimes/python_thread.h - the current context (contextvars) of the current thread.
 *
 * CPython keeps it in PyThreadState.context. The thread's PyThreadState is in a slot of the C
 * library's thread-specific data, whose number is in _PyRuntime. Nothing is taken on trust: the
 * PyThreadState names the thread that it belongs to, and a context names its type.
 */
#ifndef THROUGHLINE_RUNTIMES_PYTHON_THREAD_H
#define THROUGHLINE_RUNTIMES_PYTHON_THREAD_H

#include "core/abi.h"
#include "core/process.h"
#include "runtimes/runtime.h"

#define TL_PY_SLOTS 32 /* of thread-specific data in the first block, which is in the thread */

/* Offsets in objects, which no version from 3.9 to 3.14 has changed. */
#define TL_PY_TYPE_AT 8 /* PyObject.ob_type */
#define TL_PY_PREVIOUS_AT 16 /* PyContext.ctx_prev: what was current before it was entered */
#define TL_PY_ENTERED_AT 40 /* PyContext.ctx_entered, an int */

/* By the index in the cookies of the probes. The agent removes an entry before the probes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct tl_python_binary);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_python_bins SEC(".maps");

static __always_inline const struct tl_python_binary *tl_py_binary(__u32 index)
{
	return bpf_map_lookup_elem(&tl_python_bins, &index);
}

/* The PyThreadState of the current thread; 0 where it has none, or where that cannot be read. */
static __always_inline __u64 tl_py_thread_state(const struct tl_python_binary *binary, __u64 base)
{
	__u64 thread = tl_thread_pointer() - binary->pthread_at, state;
	__u64 key = tl_user_word(base + binary->runtime_at + binary->key_at);

	/* Py_tss_t: whether the key was made, an int, and the key */
	if (!(__u32)key || key >> 32 >= TL_PY_SLOTS)
		return 0;
	/* struct pthread_key_data: a number, and the data */
	state = tl_user_word(thread + binary->specific_at + (key >> 32) * 16 + 8);
	if (!state || tl_user_word(state + binary->thread_id_at) != thread)
		return 0;
	return state;
}

/*
 * Reads the address of the current thread's context, which may be 0. False: the thread has no
 * PyThreadState that could be found.
 */
static __always_inline bool tl_py_context(const struct tl_python_binary *binary, __u64 base,
					  __u64 *context)
{
	__u64 state = binary->runtime_at ? tl_py_thread_state(binary, base) : 0;

	*context = state ? tl_user_word(state + binary->context_at) : 0;
	return state;
}

/* Is there a context at this address? */
static __always_inline bool tl_py_is_context(const struct tl_python_binary *binary, __u64 base,
					     __u64 context)
{
	return tl_user_word(context + TL_PY_TYPE_AT) == base + binary->type_at;
}

#endif
