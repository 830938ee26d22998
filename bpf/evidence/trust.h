/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * evidence/trust.h - whether what a thread does is evidence: what is known of its program, and what
 * was seen of it.
 *
 * A thread that serves one request after the other proves the parent of its calls. A program is
 * known to have such threads by its name, or by what an interpreter runs in it (TL_RUNTIME_WORKERS,
 * which the agent tells). Or it has one thread, and has earned trust: TL_EARNED requests that made
 * calls were read and answered by it without a wait for several descriptors, and nothing contradicts
 * it. All else is likely only, and a contradiction takes that away, too.
 */
#ifndef THROUGHLINE_EVIDENCE_TRUST_H
#define THROUGHLINE_EVIDENCE_TRUST_H

#include "core/counters.h"
#include "core/process.h"
#include "core/settings.h"
#include "runtimes/python_acceptor.h"
#include "runtimes/runtime.h"
#include "trace/request.h"

#define TL_EARNED 16
#define TL_NAME_WORDS 8 /* of seven characters, of the name of a cgroup */

/* The oldest give way: what they have earned has to be earned again. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct tl_program);
	__type(value, struct tl_trust);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_trust SEC(".maps");

/*
 * Which contradictions (bits, by enum tl_seen) were seen of a program. What it has earned is earned
 * again soon; but the first calls that are contradicted are wrong. The agent keeps them in a file.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct tl_lasting);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_contradicted SEC(".maps");

#ifdef TL_LEGACY
#define tl_executable() BPF_CORE_READ(tl_current_task(), mm, exe_file)
#define TL_INODE(file) BPF_CORE_READ(file, f_inode)
#define TL_DEVICE(inode) BPF_CORE_READ(inode, i_sb, s_dev)
#define TL_CGROUP_NAME(task) BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, name)
#else
#define tl_executable() (tl_current_task()->mm->exe_file)
#define TL_INODE(file) ((file)->f_inode)
#define TL_DEVICE(inode) ((inode)->i_sb->s_dev)
#define TL_CGROUP_NAME(task) ((task)->cgroups->dfl_cgrp->kn->name)
#endif

/*
 * Programs whose way to serve requests is known, by the first seven letters of the name of the file
 * that they execute. PHP alone is none of them: it runs event loops, too (ReactPHP, Amp, Swoole).
 */
static __always_inline __u8 tl_kind_of(struct file *file)
{
	__u64 name = 0;

	bpf_probe_read_kernel_str(&name, sizeof(name),
				  BPF_CORE_READ(file, f_path.dentry, d_name.name));
	switch (name) {
	case 0x786e69676eULL: /* nginx */
	case 0x6569676e61ULL: /* angie */
		return TL_PROGRAM_TIMERS;
	case 0x7074746867696cULL: /* lighttpd */
		return TL_PROGRAM_EVENTS;
	case 0x6470747468ULL: /* httpd */
	case 0x32656863617061ULL: /* apache2 */
	case 0x6d70662d706870ULL: /* php-fpm8.2 */
	case 0x6967632d706870ULL: /* php-cgi */
		return TL_PROGRAM_THREADS;
	}
	return TL_PROGRAM_UNKNOWN;
}

/* Which file the current thread executes, in which cgroup. See tl_process_began_ns(). */
#ifdef TL_LEGACY
static __always_inline int tl_program_now(struct tl_program *program)
{
	struct file *file = tl_executable();

	program->inode = BPF_CORE_READ(file, f_inode, i_ino);
	program->device = BPF_CORE_READ(file, f_inode, i_sb, s_dev);
	program->cgroup_id = tl_cgroup_of(tl_current_task());
	return 0;
}
#else
__noinline int tl_program_now(struct tl_program *program)
{
	struct file *file = tl_executable();

	if (!program)
		return 0;
	program->inode = file->f_inode->i_ino;
	program->device = file->f_inode->i_sb->s_dev;
	program->cgroup_id = tl_cgroup_of(tl_current_task());
	return 0;
}
#endif

/* What is known of it by its name. */
__noinline int tl_kind_now(void)
{
	return tl_kind_of(tl_executable());
}

/*
 * A hash (FNV-1a, by words) of the name of the current cgroup: of its begin, where it is long. `word`
 * is memory for it: the caller has few bytes of stack left.
 */
static __always_inline __u64 tl_cgroup_name(__u64 *word)
{
	const char *name = TL_CGROUP_NAME(tl_current_task());
	__u64 hash = 0xcbf29ce484222325ULL;
	int i;

#pragma unroll 1
	for (i = 0; i < TL_NAME_WORDS; i++) {
		*word = 0;
		/* seven characters and the end */
		bpf_probe_read_kernel_str(word, sizeof(*word), name + i * 7);
		hash = (hash ^ *word) * 0x100000001b3ULL;
		if (*word < 1ULL << 48)
			break;
	}
	return hash;
}

/*
 * Which contradictions of the current program are noted in tl_contradicted: bits by enum tl_seen. Adds
 * `what`, where that is one. A global function, to have a stack of its own, and see
 * tl_process_began_ns().
 */
__noinline __u64 tl_noted(__u32 kind, __u32 what)
{
	struct file *file = tl_executable();
	struct inode *inode = TL_INODE(file);
	struct tl_lasting key = {};
	__u64 *known, seen;

	asm volatile("" ::"r"(kind), "r"(what));
	/* in this order, since few registers are left */
	key.cgroup = kind;
	key.inode = TL_READ(inode, i_ino);
	key.size = TL_READ(inode, i_size);
	key.device = TL_DEVICE(inode);
	key.generation = TL_READ(inode, i_generation);
	asm volatile("" ::: "memory");
	key.cgroup ^= tl_cgroup_name(&seen);
	known = bpf_map_lookup_elem(&tl_contradicted, &key);
	seen = known ? *known : 0;
	if (what < TL_SEEN_CONTRADICTIONS) {
		seen |= 1ULL << what;
		bpf_map_update_elem(&tl_contradicted, &key, &seen, BPF_ANY);
	}
	return seen;
}

/*
 * Something was seen that says what the current program's threads are: enum tl_seen. A contradiction
 * that is new is also noted in tl_contradicted.
 */
static __always_inline void tl_saw(struct tl_trust *trust, __u32 what)
{
	__u64 seen;

	if (!trust || what >= TL_SEEN_ALL)
		return;
	/* see tl_how_sure() */
	if (trust->kind != TL_PROGRAM_UNKNOWN && what > TL_SEEN_READ)
		return;
	seen = trust->seen[what];
	__sync_fetch_and_add(&trust->seen[what], 1);
	if (what >= TL_SEEN_CONTRADICTIONS)
		return;
	tl_count(TL_CONTRADICTED_ANSWER + what);
	if (!seen)
		tl_noted(trust->kind, what);
}

/* Recalls what is noted in tl_contradicted. */
static __always_inline void tl_recall(struct tl_trust *trust)
{
	__u64 seen = tl_noted(trust->kind, TL_SEEN_ALL);
	__u32 i;

	trust->recalled = 1;
	if (!seen)
		return;
#pragma unroll
	for (i = 0; i < TL_SEEN_CONTRADICTIONS; i++)
		__sync_fetch_and_add(&trust->seen[i], seen >> i & 1);
}

/* Finds or makes the entry of tl_trust_now(). No inline function, as above. */
static __noinline struct tl_trust *tl_trust_find(void)
{
	__u32 pid = tl_process_id();
	const struct tl_runtime *runtime = tl_runtime_of(pid);
	struct tl_program program = {};
	struct tl_trust *trust;

	tl_program_now(&program);
	/* a thread of the kernel */
	if (!program.inode)
		return NULL;
	if (runtime && tl_runs_workers(runtime) && tl_python_serves(pid, TL_PY_ANY_PORT))
		program.runs = TL_PROGRAM_WORKERS;
	trust = bpf_map_lookup_elem(&tl_trust, &program);
	if (trust)
		return trust;
	tl_insert_zeros(&tl_trust, &program, BPF_NOEXIST);
	trust = bpf_map_lookup_elem(&tl_trust, &program);
	if (trust)
		trust->kind = program.runs ? program.runs : tl_kind_now();
	return trust;
}

/* What is known of the program that the current thread executes. NULL: nothing can be kept. */
static __always_inline struct tl_trust *tl_trust_now(void)
{
	struct tl_trust *trust = tl_trust_find();

	if (trust && !trust->recalled)
		tl_recall(trust);
	return trust;
}

/* Is the program known to serve one request after the other on each thread? */
static __always_inline bool tl_is_serial(const struct tl_trust *trust)
{
	return trust->kind == TL_PROGRAM_THREADS || trust->kind == TL_PROGRAM_WORKERS;
}

/* Is the program known to serve several requests at a time on each thread? */
static __always_inline bool tl_is_known_loop(const struct tl_trust *trust)
{
	return trust->kind == TL_PROGRAM_EVENTS || trust->kind == TL_PROGRAM_TIMERS;
}

/* Do the program's threads serve several requests at a time? */
static __always_inline bool tl_is_loop(const struct tl_trust *trust)
{
	if (trust->kind != TL_PROGRAM_UNKNOWN)
		return tl_is_known_loop(trust);
	return trust->seen[TL_SEEN_WAITS] || trust->seen[TL_SEEN_OVERLAP];
}

enum tl_sure {
	TL_SURE_NOT = 0, /* contradicted */
	TL_SURE_LIKELY,
	TL_SURE_PROVEN,
};

/*
 * Has the current process one thread only? Of several, each may do the others' work, and hand over the
 * result in a way that no system call shows (docs/decisions/0016-trust.md).
 */
__noinline int tl_is_alone(void)
{
#ifdef TL_LEGACY
	return BPF_CORE_READ(tl_current_task(), signal, nr_threads) == 1;
#else
	return tl_current_task()->signal->nr_threads == 1;
#endif
}

/*
 * How sure is what a thread does? Of a program that is known only two things are contradictions: it
 * may be built in another way. `unsure`: an event loop has read its request in
 * part only, or has made a call since it has read something. The next call may be a timer's.
 */
static __always_inline enum tl_sure tl_how_sure(const struct tl_trust *trust, bool unsure)
{
	const __u64 *seen = trust->seen;

	if (seen[TL_SEEN_ANSWER] || seen[TL_SEEN_READ])
		return TL_SURE_NOT;
	if (tl_is_serial(trust))
		return TL_SURE_PROVEN;
	if (tl_is_known_loop(trust))
		return unsure ? TL_SURE_LIKELY : TL_SURE_PROVEN;
	if (seen[TL_SEEN_RESPONSE] || seen[TL_SEEN_IDLE] || seen[TL_SEEN_LATE] ||
	    seen[TL_SEEN_CONNECTION])
		return TL_SURE_NOT;
	if (tl_is_loop(trust) || trust->earned < TL_EARNED || !tl_is_alone())
		return TL_SURE_LIKELY;
	return TL_SURE_PROVEN;
}

/* Counts how a call of the program came by its parent: -1, or the reason why it has none. */
static __always_inline void tl_found(struct tl_trust *trust, int refused, bool likely)
{
	__u32 found = TL_FOUND_NOTHING;

	if (!trust)
		return;
	switch (refused) {
	case -1:
		found = likely ? TL_FOUND_LIKELY : TL_FOUND_PROVEN;
		break;
	case TL_ROOT_NOT_PROVEN:
		found = TL_FOUND_NOT_PROVEN;
		break;
	case TL_ROOT_CONTRADICTED:
		found = TL_FOUND_CONTRADICTED;
		break;
	case TL_ROOT_AMBIGUOUS:
		found = TL_FOUND_AMBIGUOUS;
		break;
	case TL_ROOT_PARENT_ENDED:
		found = TL_FOUND_ENDED;
		break;
	}
	__sync_fetch_and_add(&trust->found[found], 1);
}

#endif
