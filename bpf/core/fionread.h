/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * core/fionread.h - processes that call FIONREAD, on kernels that answer it wrongly for sockets in
 * a sockhash (docs/decisions/0002-fionread.md).
 */
#ifndef THROUGHLINE_CORE_FIONREAD_H
#define THROUGHLINE_CORE_FIONREAD_H

#include "core/counters.h"
#include "core/process.h"
#include "core/settings.h"

/*
 * Processes (thread groups) that were seen to call FIONREAD, and when they began (tl_born()). Kept
 * only where FIONREAD is broken.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_fionread SEC(".maps");

/* A process: an entry of tl_fionread, key and value. */
struct tl_member_of {
	__u32 pid;
	__u32 born; /* when it began: see tl_born() */
};

/*
 * The sockets in the sockhash, by cookie, and the process that made the connection. Kept only where
 * FIONREAD is broken. An entry ends with the connection, or when the socket leaves the sockhash:
 * sk_msg does not see the sends of a socket that has no entry.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct tl_member_of);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_members SEC(".maps");

/*
 * Programs that are known to call FIONREAD. They call it when an answer fills their buffer, and to
 * learn it then would be too late. Other programs are learned (tl_learn_fionread()).
 */
static __always_inline bool tl_calls_fionread(struct task_struct *task)
{
	char name[16] = {};
	__u64 word;

	BPF_CORE_READ_INTO(&name, task, group_leader, comm);
	word = *(__u64 *)name;
	switch (word & 0xffffffffffffULL) { /* six bytes: up to five letters and the end */
	case 0x00786e69676eULL: /* nginx */
	case 0x006569676e61ULL: /* angie */
		return true;
	}
	return (word & 0xffffffffffULL) == 0x006176616aULL || /* java */
	       (word & 0xffffffffffffffULL) == 0x0074656e746f64ULL || /* dotnet */
	       word == 0x747365726e65706fULL || /* openrest(y) */
	       word == 0x647074746867696cULL; /* lighttpd */
}

/* A process calls FIONREAD: its sockets must leave the sockhash. */
static __always_inline void tl_learn_fionread(void)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	__u32 born = tl_process_born();
	__u32 *known = bpf_map_lookup_elem(&tl_fionread, &tgid);

	if (known && *known == born)
		return;
	if (!bpf_map_update_elem(&tl_fionread, &tgid, &born, BPF_ANY))
		tl_count(TL_FIONREAD_LEARNED);
}

/* Was this process seen to call FIONREAD? */
static __always_inline bool tl_asks_fionread(__u32 pid, __u32 born)
{
	__u32 *known = bpf_map_lookup_elem(&tl_fionread, &pid);

	return known && *known == born;
}

#endif
