/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* trace/sample.h - whether a new trace is sampled. */
#ifndef THROUGHLINE_TRACE_SAMPLE_H
#define THROUGHLINE_TRACE_SAMPLE_H

#include "core/settings.h"
#include "proto/w3c.h"

/* The head sampling decision for a new trace: OpenTelemetry's TraceIdRatioBased. */
static __always_inline __u8 tl_sample_root(const __u8 *trace_id)
{
	const struct tl_settings *settings = tl_settings_now();
	__u64 low;

	if (!settings)
		return 0;
	switch (settings->sampler) {
	case TL_SAMPLER_ALWAYS_ON:
		return TL_FLAG_SAMPLED;
	case TL_SAMPLER_RATIO:
		low = bpf_be64_to_cpu(*(__u64 *)(trace_id + 8));
		return low < settings->ratio_bound || settings->ratio_bound == ~0ULL ?
			       TL_FLAG_SAMPLED :
			       0;
	}
	return 0;
}

#endif
