/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* wire/detect.h - what the first bytes of a connection look like. */
#ifndef THROUGHLINE_WIRE_DETECT_H
#define THROUGHLINE_WIRE_DETECT_H

#include "core/compat.h"

/*
 * May these bytes be the start of a request? They are up to four capital letters, or three and a
 * space; the parser checks the rest. An answer begins with `HTTP`.
 */
static __always_inline bool tl_begins_request(const __u8 *start, __u32 n)
{
	__u32 i;

	if (n == 4 && start[0] == 'H' && start[1] == 'T' && start[2] == 'T' && start[3] == 'P')
		return false;
	for (i = 0; i < 4; i++) {
		if (i >= n)
			break;
		if (start[i] >= 'A' && start[i] <= 'Z')
			continue;
		if (i != 3 || start[i] != ' ')
			return false;
	}
	return true;
}

#define TL_PROXY_SIGNATURE_BYTES 12 /* the first bytes of the PROXY protocol's second version */

/* not static: libbpf relocates only global variables of .rodata */
const __u8 tl_proxy_signature[16] = "\r\n\r\n\0\r\nQUIT\n";

/* May these bytes be the start of the PROXY protocol's second version? */
static __always_inline bool tl_begins_proxy(const __u8 *start, __u32 n)
{
	__u32 i;

	for (i = 0; i < TL_PROXY_SIGNATURE_BYTES; i++) {
		if (i >= n)
			break;
		if (start[i] != tl_proxy_signature[i])
			return false;
	}
	return true;
}

#endif
