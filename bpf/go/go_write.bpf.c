// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * go/go_write.bpf.c - group `go_write`: writes `traceparent` (and `tracestate`) into requests that
 * Go programs send, inside TLS too, before they are encrypted (docs/operator/go.md,
 * docs/decisions/0009-go-write.md).
 *
 * `go` decides into which request a context is written, and which context: see go/writing.h.
 */
#include "go/write_grpc.h"
#include "go/write_http1.h"
#include "go/write_http2.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
