/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * tls/maps.h - the TLS connections, by tl_tls_key().
 *
 * To be included first: in the objects for older kernels (TL_LEGACY) global functions look up their
 * flow in these maps. The oldest entries give way, since a process that dies does not free its
 * connections.
 */
#ifndef THROUGHLINE_TLS_MAPS_H
#define THROUGHLINE_TLS_MAPS_H

#include "core/maps.h"

#ifdef TL_LEGACY
struct tl_flow;
struct tl_text;

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_flow);
} tl_tls_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_text);
} tl_tls_texts SEC(".maps");

#define TL_FLOWS tl_tls_flows
#define TL_TEXTS tl_tls_texts
#else
struct tl_tls;

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tl_tls);
} tl_tls SEC(".maps");
#endif

#endif
