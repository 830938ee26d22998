/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * core/abi_trust.h - part of abi.h: what was seen of programs whose threads may be evidence for a
 * parent.
 */
#ifndef THROUGHLINE_ABI_TRUST_H
#define THROUGHLINE_ABI_TRUST_H

#include "core/kernel.h"

/* Which evidence for a parent is enough. */
enum tl_parents {
	TL_PARENTS_PROVEN = 0,
	TL_PARENTS_LIKELY =
		1, /* also such that is right for most programs, until it is contradicted */
};

/* What tl_cgroups holds. */
enum tl_cgroup_flags {
	TL_CGROUP_TRACED = 1 << 0,
	TL_CGROUP_PROVEN = 1 << 1, /* TL_PARENTS_PROVEN, whatever the settings say */
	TL_CGROUP_LIKELY = 1 << 2, /* TL_PARENTS_LIKELY */
};

/*
 * Which processes share what was seen: those that execute one file in one cgroup. Interpreters
 * execute many programs: processes that are known by what they run have an entry of their own.
 */
struct tl_program {
	__u64 cgroup_id;
	__u64 inode;
	__u32 device;
	__u32 runs; /* enum tl_program_kind by what runs: TL_PROGRAM_UNKNOWN or TL_PROGRAM_WORKERS */
};

/* What a program is known to be by its name, or by what it runs. */
enum tl_program_kind {
	TL_PROGRAM_UNKNOWN = 0,
	TL_PROGRAM_THREADS, /* a thread serves one request after the other */
	TL_PROGRAM_EVENTS, /* an event loop, whose handler of an event works for one request */
	TL_PROGRAM_WORKERS, /* as THREADS, but for threads that are seen to serve several requests */
	TL_PROGRAM_TIMERS, /* as EVENTS, and its timers make calls in the turn of an event */
};

/* What is known of what a process runs: tl_runtime. */
enum tl_runtime_flags {
	TL_RUNTIME_WORKERS = 1 << 0, /* it runs a server that serves each request on one thread */
	TL_RUNTIME_TASKS = 1 << 1, /* it has run contexts that are not threads' own, or greenlets */
	TL_RUNTIME_READABLE = 1 << 2, /* a thread that read a request has told its context */
	TL_RUNTIME_SETTLED = 1 << 3, /* WORKERS holds for processes that it forks from now on */
	TL_RUNTIME_TURNED = 1
			    << 4, /* it has waited since it is known: no read is missed any more */
	TL_RUNTIME_TAKES = 1 << 5, /* it runs Puma: a thread asks for the state of a connection
				    * where it takes a request over */
	TL_RUNTIME_SHARED = 1 << 6, /* other threads accept where tl_runtime.acceptor does: WORKERS
				     * does not hold */
};

/* What was seen of the threads of a program that read requests. */
enum tl_seen {
	/* contradictions: threads are no evidence */
	TL_SEEN_ANSWER = 0, /* a thread answered a request that another thread had read */
	TL_SEEN_READ, /* two threads read one request */
	TL_SEEN_RESPONSE, /* a thread read the answer to a call that another thread had made */
	TL_SEEN_IDLE, /* a thread made a call, and none of its requests could have made it */
	TL_SEEN_LATE, /* a call was answered after the request that it was made for */
	TL_SEEN_CONNECTION, /* a connection was made for a request, and used after that had ended */
	/* the threads are event loops */
	TL_SEEN_WAITS, /* one waited for several descriptors, its request unanswered */
	TL_SEEN_OVERLAP, /* one read a request, its last one unanswered */
	TL_SEEN_ALL,
	TL_SEEN_CONTRADICTIONS = TL_SEEN_WAITS,
};

/*
 * A program when its service begins again, in a cgroup with another id: the file with the same number
 * and size, in a cgroup of the same name.
 */
struct tl_lasting {
	__u64 cgroup; /* hash of the last part of its path, and of tl_program_kind */
	__u64 inode;
	__u64 size;
	__u32 device;
	__u32 generation; /* of the inode: another one when a file system uses the number again */
};

/* How calls of a program came by their parents. */
enum tl_found {
	TL_FOUND_PROVEN = 0,
	TL_FOUND_LIKELY,
	TL_FOUND_NOT_PROVEN, /* none: the evidence was likely only */
	TL_FOUND_CONTRADICTED, /* none: the evidence was contradicted */
	TL_FOUND_AMBIGUOUS, /* none: several requests could be the parent */
	TL_FOUND_ENDED, /* none: the request had ended */
	TL_FOUND_NOTHING, /* none: no evidence */
	TL_FOUND_ALL,
};

struct tl_trust {
	__u64 earned; /* requests that have made calls, and were read and answered by one thread */
	__u64 seen[TL_SEEN_ALL];
	__u64 found[TL_FOUND_ALL];
	__u8 kind; /* enum tl_program_kind */
	__u8 recalled; /* what contradicted it earlier is in `seen` */
	__u8 _pad[6];
};

#endif
