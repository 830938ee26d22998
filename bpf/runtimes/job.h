/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * runtimes/job.h - the job that a process of Celery or RQ works at: its calls are one trace.
 *
 * A job is no request: nothing on the host says which request has queued it. It is an entry of
 * tl_requests without a connection, and with a span of its own (docs/decisions/0027-jobs.md). The
 * agent tells which processes are workers (tl_runtime.jobs). Their children say when a job begins:
 *
 *   Celery  a child of the pool reads each job from a pipe that its parent has made: 4 bytes that
 *           tell the length, and the job. With the next 4 bytes, or its end, the job ends.
 *   RQ      a worker forks a process for each job, which begins with setpgid(0, 0).
 */
#ifndef THROUGHLINE_RUNTIMES_JOB_H
#define THROUGHLINE_RUNTIMES_JOB_H

#include "runtimes/python.h"
#include "trace/sample.h"
#include "trace/span.h"

#ifndef TL_LEGACY

#define TL_JOB_HEADER 4 /* bytes of a pipe of Celery's in front of each job */
#define TL_JOB_NS (24ULL * 3600 * 1000 * 1000 * 1000) /* for so long a job is a parent */
#define TL_PF_FORKNOEXEC 0x40 /* task_struct.flags: forked, and has executed nothing since */
#define TL_S_IFIFO 0010000

/* What a process works at. */
struct tl_job {
	__u64 request; /* key of tl_requests, or 0: it waits for a job */
	__u64 began_ns;
	__u32 number; /* Celery: the descriptor of the pipe from which it has read last */
	__u8 jobs; /* enum tl_jobs */
	__u8 waits; /* Celery: it has asked for the length of the next job */
	__u8 _pad[2];
};

/* By tl_job_key(). */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct tl_job);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_jobs SEC(".maps");

/*
 * Of the current process. Not tl_process_key(): a process that executes another program has to find its
 * entry when it ends.
 */
static __always_inline __u64 tl_job_key(void)
{
	return tl_current_ids() >> 32 << 32 | tl_process_born();
}

static __always_inline struct tl_job *tl_job_now(void)
{
	__u64 key = tl_job_key();

	return bpf_map_lookup_elem(&tl_jobs, &key);
}

/*
 * Has the current process executed a program since it was forked? A global function: see
 * core/process.h.
 */
__noinline int tl_has_executed(void)
{
	return !(tl_current_task()->group_leader->flags & TL_PF_FORKNOEXEC);
}

/*
 * The key of the job that the current thread works at, or 0. All threads of RQ's process work at its
 * job. Of Celery's only the first one does: others may be an exporter's.
 */
static __always_inline __u64 tl_job_request(void)
{
	const struct tl_job *job = tl_job_now();
	__u64 ids = tl_current_ids();

	if (!job || (job->jobs == TL_JOBS_CELERY && (__u32)ids != ids >> 32))
		return 0;
	/* a program that it has executed instead is no job */
	return tl_has_executed() ? 0 : job->request;
}

/*
 * The job of this process has ended: sends its span, where a call has become a part of its trace. No
 * inline function, to have a stack of its own.
 */
static __noinline void tl_job_ends(struct tl_job *job)
{
	__u64 key = job->request;
	struct tl_request *request = bpf_map_lookup_elem(&tl_requests, &key);
	struct tl_span *span;
	__u32 zero = 0;

	job->request = 0;
	if (!request || !tl_is_request(request, key))
		return;
	if (!request->fanout)
		goto out;
	if (!(request->trace_flags & TL_FLAG_SAMPLED)) {
		tl_count(TL_SPANS_UNSAMPLED);
		goto out;
	}
	span = bpf_ringbuf_reserve(&tl_spans, TL_SPAN_SHORT, 0);
	if (!span) {
		tl_count(TL_SPANS_DROPPED_RING_FULL);
		goto out;
	}
	bpf_probe_read_kernel(span, TL_SPAN_SHORT, bpf_map_lookup_elem(&tl_zeros, &zero));
	span->start_ns = job->began_ns;
	span->end_ns = bpf_ktime_get_ns();
	span->cgroup_id = tl_cgroup_of(tl_current_task());
	__builtin_memcpy(span->trace_id, request->trace_id, 16);
	__builtin_memcpy(span->span_id, &key, 8);
	span->kind = TL_KIND_JOB;
	span->status = job->jobs;
	span->trace_flags = request->trace_flags;
	span->pid = tl_current_ids() >> 32;
	tl_count(TL_SPANS_SENT);
	bpf_ringbuf_submit(span, BPF_RB_NO_WAKEUP);
out:
	tl_end_request(key);
}

/* The current process begins a job, with which a trace begins. */
static __always_inline void tl_job_begins(struct tl_job *job)
{
	struct tl_request *request;
	__u64 key;

	tl_random_id((__u8 *)&key, 2);
	tl_insert_zeros(&tl_requests, &key, BPF_NOEXIST);
	request = bpf_map_lookup_elem(&tl_requests, &key);
	if (!request) {
		tl_count(TL_FULL_REQUESTS);
		return;
	}
	tl_random_id(request->trace_id, 4);
	request->trace_flags = TL_FLAG_RANDOM | tl_sample_root(request->trace_id);
	request->flags = TL_REQUEST_JOB;
	job->began_ns = bpf_ktime_get_ns();
	/* it lasts longer than a request: see tl_take_parent() */
	request->start_ns = job->began_ns + TL_JOB_NS - TL_AGE_MAX_NS;
	tl_order();
	*(volatile __u64 *)request->span_id = key;
	job->request = key;
	tl_count(TL_JOBS_BEGUN);
}

/* Is the current process the child of a worker of this kind, and has executed nothing since? */
static __always_inline bool tl_is_jobs_child(enum tl_jobs jobs)
{
	__u64 parent = tl_parent_process(), word = 0;
	__u32 pid = parent >> 32;
	const struct tl_runtime *known = bpf_map_lookup_elem(&tl_runtimes, &pid);

	if (!known || known->jobs != jobs || known->born != (__u32)parent)
		return false;
	/* the memory that it has got from its parent shows what that executes */
	return !bpf_probe_read_user(&word, sizeof(word), (void *)known->check_at) &&
	       word == known->check;
}

/*
 * Is a pipe behind this descriptor that the parent of the current process has made? A file has the
 * credentials of the process that has opened it, and fork() gives each process credentials of its own.
 * Those in `cred` are others for a moment, as in a look-up of overlayfs; `real_cred` stays.
 * A global function: see core/process.h.
 */
__noinline int tl_is_parents_pipe(__u32 number)
{
	struct task_struct *parent = tl_current_task()->group_leader->real_parent;
	struct file *file = tl_descriptor_file(number);

	asm volatile("" ::"r"(number));
	return file && (BPF_CORE_READ(file, f_inode, i_mode) & TL_S_IFMT) == TL_S_IFIFO &&
	       BPF_CORE_READ(file, f_cred) == parent->real_cred;
}

/* Is the current thread the first of a process that was forked, and has executed nothing since? */
static __always_inline bool tl_is_forked(void)
{
	struct task_struct *task = tl_current_task();

	return task->flags & TL_PF_FORKNOEXEC && task->pid == task->tgid;
}

/*
 * The current thread, which tl_is_forked(), reads `count` bytes from the descriptor `number`: a child
 * of Celery's pool may have ended a job, or begin one. A global function, to have a stack of its own.
 */
__noinline int tl_job_reads(__u32 number, __u64 count)
{
	struct tl_job *job = tl_job_now(), fresh = { .number = number, .jobs = TL_JOBS_CELERY };
	__u64 key;

	asm volatile("" ::"r"(number), "r"(count));
	if (count != TL_JOB_HEADER) {
		if (!job || !job->waits || job->number != number)
			return 0;
		job->waits = 0;
		tl_job_begins(job);
		return 0;
	}
	if (job ? job->jobs != TL_JOBS_CELERY : !tl_is_jobs_child(TL_JOBS_CELERY))
		return 0;
	/* first, whatever the pipe looks like now: a job that ends too early is only split */
	if (job && job->number == number && job->request)
		tl_job_ends(job);
	if (!tl_is_parents_pipe(number)) {
		if (job && job->number == number)
			job->waits = 0;
		return 0;
	}
	if (!job) {
		key = tl_job_key();
		bpf_map_update_elem(&tl_jobs, &key, &fresh, BPF_NOEXIST);
		job = tl_job_now();
		if (!job)
			return 0;
	}
	if (job->request)
		tl_job_ends(job);
	job->number = number;
	job->waits = 1;
	return 0;
}

/*
 * The current thread, which tl_is_forked(), makes its process the first of a group: a process of RQ
 * begins its job. The end of that is only seen while there are probes. A global function, as above.
 */
__noinline int tl_job_groups(void)
{
	struct tl_job *job = tl_job_now(), fresh = { .jobs = TL_JOBS_RQ };
	__u64 key = tl_job_key();

	if (job || !tl_py_is_probed() || !tl_is_jobs_child(TL_JOBS_RQ))
		return 0;
	bpf_map_update_elem(&tl_jobs, &key, &fresh, BPF_NOEXIST);
	job = tl_job_now();
	if (job)
		tl_job_begins(job);
	return 0;
}

/* The current process ends. A global function, as above. */
__noinline int tl_job_exits(void)
{
	struct tl_job *job = tl_job_now(), last;
	__u64 key = tl_job_key();

	if (!job)
		return 0;
	last = *job;
	/* of threads that end at the same time one removes the entry */
	if (!bpf_map_delete_elem(&tl_jobs, &key) && last.request)
		tl_job_ends(&last);
	return 0;
}

#endif

#endif
