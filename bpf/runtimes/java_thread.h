/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * runtimes/java_thread.h - the Java thread that runs now, read in the memory of HotSpot.
 *
 * HotSpot has a list of its threads (ThreadsSMRSupport::_java_thread_list). The JavaThread of the
 * current kernel thread is looked for there once, by its id (OSThread::_thread_id). HotSpot gives
 * the memory of threads that have ended to others: so each use checks that the JavaThread is still
 * this kernel thread's, and in a system call (_thread_in_native), from which nothing but a Java
 * thread writes to a socket.
 */
#ifndef THROUGHLINE_RUNTIMES_JAVA_THREAD_H
#define THROUGHLINE_RUNTIMES_JAVA_THREAD_H

#include "core/maps.h"
#include "runtimes/runtime.h"

#define TL_JAVA_SCANNED 256 /* threads of the list that are looked at in one go */
#define TL_JAVA_LISTED_MAX (1U << 20)
#define TL_JAVA_ID_MAX (1ULL << TL_EXECUTED_SHIFT) /* see tl_process_key() */

/* By index. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TL_JAVA_BINARIES);
	__type(key, __u32);
	__type(value, struct tl_java_binary);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_java_bins SEC(".maps");

/* The JavaThread of a kernel thread. */
struct tl_java_thread {
	__u64 thread; /* its address, or 0: it is not in the part of the list that was looked at */
	__u64 list; /* the list in which it was looked for */
	__u32 born; /* see tl_born() */
	__u32 left; /* how many of the list have not been looked at */
};

/* By thread id. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, __u32);
	__type(value, struct tl_java_thread);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_java_threads SEC(".maps");

static __always_inline __u32 tl_user_half(__u64 address)
{
	__u32 half = 0;

	if (bpf_probe_read_user(&half, sizeof(half), (void *)address))
		return 0;
	return half;
}

/* The id of the current thread in its own PID namespace. */
static __always_inline __u32 tl_own_tid(void)
{
	struct task_struct *task = tl_current_task();
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	__u32 level = BPF_CORE_READ(pid, level), id = 0;

	if (bpf_probe_read_kernel(&id, sizeof(id), &pid->numbers[level].nr))
		return 0;
	return id;
}

/*
 * Is it the JavaThread of the current kernel thread, in a system call? A global function: verifiers
 * look at it once, and not in each turn of a loop.
 */
__noinline int tl_java_is(__u32 index, __u64 thread)
{
	const struct tl_java_binary *binary = bpf_map_lookup_elem(&tl_java_bins, &index);
	__u64 os;

	asm volatile("" ::"r"(thread));
	if (!binary)
		return false;
	os = tl_user_word(thread + binary->thread_osthread);
	return os && tl_user_half(os + binary->osthread_id) == tl_own_tid() &&
	       tl_user_half(thread + binary->thread_state) == TL_JAVA_IN_NATIVE;
}

/* What is known of the kernel thread `tid`, which is the current one. NULL: there is no memory. */
static __always_inline struct tl_java_thread *tl_java_known(__u32 tid)
{
	struct tl_java_thread *known = bpf_map_lookup_elem(&tl_java_threads, &tid);

	if (known)
		return known;
	tl_insert_zeros(&tl_java_threads, &tid, BPF_NOEXIST);
	return bpf_map_lookup_elem(&tl_java_threads, &tid);
}

/* The JavaThread to which the word at `address` points if it is the current thread's, else 0. */
__noinline __u64 tl_java_at(__u32 index, __u64 address)
{
	__u64 thread = tl_user_word(address);

	return thread && tl_java_is(index, thread) ? thread : 0;
}

/*
 * Looks for the current thread in the list, from its end, where HotSpot puts new threads. A list
 * that is longer than TL_JAVA_SCANNED is looked at in several goes. Returns the JavaThread, or 0. A
 * global function, to have a stack of its own.
 */
__noinline __u64 tl_java_scan(__u32 index, __u64 list, __u64 threads, __u32 length)
{
	struct tl_java_thread *known = tl_java_known(tl_current_tid());
	__u64 thread = 0;
	__u32 i, left;

	asm volatile("" ::"r"(index), "r"(list), "r"(threads), "r"(length));
	if (!known)
		return 0;
	if (known->list != list || !tl_is_born(tl_current_task(), known->born)) {
		known->born = tl_born(tl_current_task());
		known->list = list;
		known->left = length;
	}
	left = known->left;
	for (i = 0; i < TL_JAVA_SCANNED && left && !thread; i++)
		thread = tl_java_at(index, threads + --left * 8ULL);
	known->thread = thread;
	known->left = left;
	return thread;
}

/* The JavaThread of the current thread, or 0: it has not been found, or is in no system call. */
static __always_inline __u64 tl_java_current(__u32 index)
{
	__u32 tid = tl_current_tid();
	const struct tl_java_thread *known = bpf_map_lookup_elem(&tl_java_threads, &tid);
	__u64 thread = 0;

	if (known && tl_is_born(tl_current_task(), known->born))
		thread = known->thread;
	return thread && tl_java_is(index, thread) ? thread : 0;
}

/*
 * Finds the JavaThread of the current thread, if it has not been found. A global function: its
 * callers have no stack for that where they ask for the thread.
 */
__noinline int tl_java_find(__u32 index, __u64 base)
{
	const struct tl_java_binary *binary = bpf_map_lookup_elem(&tl_java_bins, &index);
	__u32 length;
	__u64 list;

	asm volatile("" ::"r"(base));
	if (!binary || binary->thread_vthread == TL_JAVA_UNKNOWN || tl_java_current(index))
		return 0;
	list = tl_user_word(base + binary->threads);
	length = tl_user_half(list + binary->list_length);
	if (length <= TL_JAVA_LISTED_MAX)
		tl_java_scan(index, list, tl_user_word(list + binary->list_threads), length);
	return 0;
}

#define TL_ZGC_SHIFT 13

/*
 * Where the object is that a pointer of generational ZGC leads to (Java 21 to 23 on x86-64): one of
 * the bits 12 to 15 is set, and the address begins above that bit. 0: it is no such pointer.
 */
static __always_inline __u64 tl_java_uncolored(__u64 pointer)
{
	switch (pointer >> (TL_ZGC_SHIFT - 1) & 15) {
	case 1:
		return pointer >> TL_ZGC_SHIFT;
	case 2:
		return pointer >> (TL_ZGC_SHIFT + 1);
	case 4:
		return pointer >> (TL_ZGC_SHIFT + 2);
	case 8:
		return pointer >> (TL_ZGC_SHIFT + 3);
	}
	return 0;
}

/*
 * The id of the virtual thread whose object is at `object`; 0: it is the object of the platform
 * thread `thread`, TL_JAVA_ID_MAX: there is no such object.
 */
static __always_inline __u64 tl_java_object_id(const struct tl_java_binary *binary, __u64 object,
					       __u64 thread)
{
	__u64 eetop, id;

	if (!object ||
	    bpf_probe_read_user(&eetop, sizeof(eetop), (void *)(object + binary->object_eetop)))
		return TL_JAVA_ID_MAX;
	if (eetop == thread)
		return 0;
	id = tl_user_word(object + binary->object_tid);
	return !eetop && id && id < TL_JAVA_ID_MAX ? id : TL_JAVA_ID_MAX;
}

/*
 * The id of the virtual thread that runs now (java.lang.Thread.threadId()), which a JVM never gives
 * twice. 0: no virtual thread runs. TL_JAVA_ID_MAX: it cannot be told.
 */
static __always_inline __u64 tl_java_virtual(const struct tl_runtime *runtime)
{
	__u32 index = runtime->binary;
	const struct tl_java_binary *binary = bpf_map_lookup_elem(&tl_java_bins, &index);
	__u64 thread, pointer, id;

	if (!binary || binary->thread_vthread == TL_JAVA_UNKNOWN)
		return 0;
	thread = tl_java_current(index);
	if (!thread)
		return TL_JAVA_ID_MAX;
	if (binary->thread_owner != TL_JAVA_UNKNOWN) {
		if (!tl_user_word(thread + binary->thread_entry))
			return 0;
		id = tl_user_word(thread + binary->thread_owner);
		return id && id < TL_JAVA_ID_MAX ? id : TL_JAVA_ID_MAX;
	}
	/* a handle is the address of a pointer that the collector keeps right */
	pointer = tl_user_word(tl_user_word(thread + binary->thread_vthread));
	id = tl_java_object_id(binary, pointer, thread);
	if (id != TL_JAVA_ID_MAX)
		return id;
	return tl_java_object_id(binary, tl_java_uncolored(pointer), thread);
}

#endif
