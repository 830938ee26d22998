/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * core/abi_runtimes.h - part of abi.h: processes whose runtime keeps the current unit of work in its
 * memory, and where.
 */
#ifndef THROUGHLINE_ABI_RUNTIMES_H
#define THROUGHLINE_ABI_RUNTIMES_H

#include "core/kernel.h"

/* How the units of work of a process are told apart. */
enum tl_runtime_kind {
	TL_RUNTIME_UNKNOWN = 0, /* by the kernel's threads */
	TL_RUNTIME_PYTHON,
	TL_RUNTIME_JAVA,
	TL_RUNTIME_HAPROXY,
	TL_RUNTIME_NGINX,
	TL_RUNTIME_VARNISH,
	TL_RUNTIME_RUBY,
	TL_RUNTIME_NODE,
};

/* What is a worker for jobs of a queue. */
enum tl_jobs {
	TL_JOBS_NONE = 0,
	TL_JOBS_CELERY,
	TL_JOBS_RQ,
};

/*
 * What is known of a process whose runtime keeps the current unit of work in its memory. The memory
 * is the process's own: it may have executed another program since.
 */
struct tl_runtime {
	__u64 base; /* where the file with the runtime is mapped, less the address that it is linked for */
	__u64 check_at; /* address of a word of the process that tells whether the entry still holds; 0: none */
	__u64 check; /* the word */
	__u32 born; /* when the process began: see tl_born() */
	__u16 binary; /* in the table of the runtime: where its files keep what is read */
	__u8 kind; /* enum tl_runtime_kind */
	__u8 flags; /* enum tl_runtime_flags */
	__u32 executed; /* how many programs it had executed, and 1, when it had the word; 0: not known */
	__u8 jobs; /* enum tl_jobs: its children work at jobs */
	__u8 pool; /* the threads of that server may be older than its first accept */
	/*
	 * WORKERS holds for what the thread with this thread pointer accepts; 0: for all. What that
	 * thread and others do is noted below: see tl_py_takes().
	 */
	__u16 port; /* where it accepts, 0: it has not yet */
	__u64 acceptor;
	__u64 since_ns; /* when it has accepted first */
	__u16 others[4]; /* where other threads have accepted, before that one has; 0: nowhere */
};

/*
 * Where a build of HotSpot keeps what we read: offsets in bytes, TL_JAVA_UNKNOWN where there is no
 * such field. Members are named after class and field.
 */
struct tl_java_binary {
	__u64 threads; /* address of ThreadsSMRSupport::_java_thread_list, as linked */
	__u16 list_length; /* ThreadsList */
	__u16 list_threads;
	__u16 thread_osthread; /* Thread, JavaThread */
	__u16 thread_state;
	__u16 thread_owner; /* _monitor_owner_id: the id of the mounted Java thread (Java 24) */
	__u16 thread_entry; /* _cont_entry: set while a virtual thread is mounted */
	__u16 thread_vthread; /* handle of the mounted Java thread (Java 21) */
	__u16 osthread_id;
	__u16 object_eetop; /* java.lang.Thread: the JavaThread; 0 in a virtual thread */
	__u16 object_tid;
	__u8 _pad[4];
};

enum tl_java {
	TL_JAVA_UNKNOWN = 0xffff,
	TL_JAVA_BINARIES = 256, /* indices, of which 0 is none */
	TL_JAVA_IN_NATIVE = 4, /* JavaThread::_thread_state in a system call */
	TL_JAVA_VIRTUAL = 0xffffffff, /* for the id of a thread: it is a virtual one */
};

/*
 * Where the processes of a Python interpreter keep what is read: addresses as linked, offsets in
 * bytes.
 */
struct tl_python_binary {
	__u64 runtime_at; /* _PyRuntime */
	__u64 type_at; /* PyContext_Type */
	__u16 key_at; /* _PyRuntime.autoTSSkey, which holds the thread's PyThreadState */
	__u16 current_at; /* _PyRuntime.gilstate.tstate_current, before Python 3.12; else 0 */
	__u16 thread_id_at; /* in PyThreadState */
	__u16 context_at;
	__u16 specific_at; /* struct pthread.specific_1stblock of the C library */
	__u16 pthread_at; /* how far struct pthread begins before the thread pointer */
	__u8 thread_contexts; /* each thread runs in an empty context that was made for it (3.14) */
	__u8 _pad[3];
};

/* What a version of HAProxy has in struct connection; zeros for nginx. */
struct tl_proxy_binary {
	__u32 no_descriptor; /* the flag of connections that have no descriptor (QUIC), or 0 */
	__u16 descriptor_at; /* offset in bytes */
	__u8 _pad[2];
};

#endif
