/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* core/settings.h - what the agent tells the programs: at load, and while they run. */
#ifndef THROUGHLINE_CORE_SETTINGS_H
#define THROUGHLINE_CORE_SETTINGS_H

#include "core/abi.h"
#include "core/compat.h"

/* Written by the agent before load, read-only after it. Alone in its section. */
const volatile struct tl_config tl_config SEC(".rodata.config") = {
	.abi_version = TL_ABI_VERSION,
};

/* The types that Python gets: BTF holds only types that are used. */
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
	struct tl_runtime runtime;
	enum tl_runtime_kind runtime_kind;
	enum tl_jobs jobs;
	struct tl_java_binary java_binary;
	enum tl_java java;
	struct tl_python_binary python_binary;
	struct tl_proxy_binary proxy_binary;
	enum tl_parents parents;
	enum tl_cgroup_flags cgroup_flags;
	struct tl_program program;
	struct tl_lasting lasting;
	enum tl_program_kind program_kind;
	enum tl_runtime_flags runtime_flags;
	enum tl_seen seen;
	enum tl_found found;
	struct tl_trust trust;
};
const struct tl_abi_types *tl_abi_types __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tl_settings);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_settings SEC(".maps");

/* cgroup id -> enum tl_cgroup_flags. For a cgroup without an entry tl_settings.trace_unlisted decides. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tl_cgroups SEC(".maps");

static __always_inline const struct tl_settings *tl_settings_now(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&tl_settings, &zero);
}

/* Does tl_sent run? Some kernels lack what it needs: docs/decisions/0031-before-6.3.md. */
static __always_inline bool tl_sends_are_seen(void)
{
	const struct tl_settings *settings = tl_settings_now();

	return settings && settings->sends;
}

static __always_inline bool tl_traced(__u64 cgroup_id)
{
	__u8 *traced = bpf_map_lookup_elem(&tl_cgroups, &cgroup_id);

	const struct tl_settings *settings;

	if (traced)
		return *traced & TL_CGROUP_TRACED;
	settings = tl_settings_now();
	return settings && settings->trace_unlisted;
}

/*
 * A probe fires in every process that maps the file, also outside of the cgroups that the agent is
 * attached to. So probes follow only cgroups that the agent has listed.
 */
static __always_inline bool tl_probe_traced(void)
{
	__u64 cgroup_id = bpf_get_current_cgroup_id();
	__u8 *traced = bpf_map_lookup_elem(&tl_cgroups, &cgroup_id);

	return traced && *traced & TL_CGROUP_TRACED;
}

/* Is likely evidence enough for the parents of calls from this cgroup? */
static __always_inline bool tl_likely_is_enough(__u64 cgroup_id)
{
	__u8 *flags = bpf_map_lookup_elem(&tl_cgroups, &cgroup_id);
	const struct tl_settings *settings;

	if (flags && *flags & (TL_CGROUP_PROVEN | TL_CGROUP_LIKELY))
		return *flags & TL_CGROUP_LIKELY;
	settings = tl_settings_now();
	return settings && settings->parents == TL_PARENTS_LIKELY;
}

#endif
