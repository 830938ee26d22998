"""What the kernel tells: one record for each finished, sampled span, and duration histograms.

The layouts come from `bpf/abi.h`; the decoding of bytes into these classes is the only thing that
happens here, so that the stages behind it can be tested from recorded records without root.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """One finished span as the kernel saw it.

    Times are Unix nanoseconds; ids are raw bytes; addresses are text (IPv4-mapped ones as IPv4).
    """

    kind: str  # "server" | "client"
    trace_id: bytes  # 16 bytes
    span_id: bytes  # 8 bytes
    parent_span_id: bytes | None  # 8 bytes, None for a root
    trace_flags: int
    evidence: str  # "none" | "header" | "connect" | "restore" | "thread"
    end: str  # "complete" | "closed" | "close_delimited"
    start_unix_ns: int
    end_unix_ns: int
    cgroup_id: int
    pid: int
    method: str  # as on the wire, at most 16 characters
    target: str  # request target as on the wire, at most 256 characters
    target_length: int  # its length on the wire
    host: str  # the Host header, "" when there was none
    http_version: str  # "1.0" | "1.1"
    status: int  # 0 when no response was seen
    local_address: str
    local_port: int
    peer_address: str
    peer_port: int
    tracestate: str  # "" when there is none


@dataclass(frozen=True, slots=True)
class DurationRow:
    """One duration histogram, counted in the kernel for all requests, sampled or not.

    `buckets` has 15 counts: the OpenTelemetry bounds 0.005 0.01 0.025 0.05 0.075 0.1 0.25 0.5 0.75
    1 2.5 5 7.5 10 seconds, and what lies above. Counts are totals since the agent attached.
    """

    cgroup_id: int
    kind: str  # "server" | "client"
    method: str  # a known method or "_OTHER"
    status: int  # 0 when no response was seen
    http_version: str  # "1.0" | "1.1"
    count: int
    sum_ns: int
    buckets: tuple[int, ...]
