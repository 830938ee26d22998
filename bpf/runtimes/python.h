/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* runtimes/python.h - the unit of work of Python. */
#ifndef THROUGHLINE_RUNTIMES_PYTHON_H
#define THROUGHLINE_RUNTIMES_PYTHON_H

#include "runtimes/runtime.h"
#include "trace/request.h"

/* The current unit has read the request `key` on `socket`. False: the unit cannot be told. */
static __always_inline bool tl_python_reads(const struct tl_runtime *runtime, __u64 key,
					    __u64 socket)
{
	return false;
}

/*
 * The key of the request that the current unit works for, or the reason why it is not known (enum
 * tl_counter). 0: the unit cannot be told.
 */
static __always_inline __u64 tl_python_request(const struct tl_runtime *runtime)
{
	return 0;
}

#endif
