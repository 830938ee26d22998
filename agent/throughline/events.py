"""What the kernel tells: one record for each finished, sampled span, and duration histograms.

The layouts come from `bpf/abi.h`; the decoding of bytes into these classes is the only thing that
happens here, so that the stages behind it can be tested from recorded records without root.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop
from struct import Struct

from throughline.kernel import abi


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
    evidence: str  # "none" | "header" | "connect" | "restore" | "thread" | "packet" |
    # "goroutine" | "context"
    end: str  # "complete" | "closed" | "close_delimited"
    start_unix_ns: int
    end_unix_ns: int
    cgroup_id: int
    pid: int
    method: str  # as on the wire, at most 16 characters
    target: str  # request target as on the wire, at most 256 characters
    target_length: int  # its length on the wire
    host: str  # the Host header, "" when there was none
    http_version: str  # "1.0" | "1.1" | "2"
    status: int  # 0 when no response was seen; of gRPC: its status code, where 0 is OK
    local_address: str
    local_port: int
    peer_address: str
    peer_port: int
    tracestate: str  # "" when there is none
    tls: bool = False  # seen inside TLS
    grpc: bool = False  # a call of gRPC: the target is /SERVICE/METHOD


@dataclass(frozen=True, slots=True)
class DurationRow:
    """One duration histogram, counted in the kernel for all requests, sampled or not.

    `buckets` has 15 counts: the OpenTelemetry bounds 0.005 0.01 0.025 0.05 0.075 0.1 0.25 0.5 0.75
    1 2.5 5 7.5 10 seconds, and what lies above. Counts are totals since the agent attached.
    """

    cgroup_id: int
    kind: str  # "server" | "client"
    method: str  # a known method or "_OTHER"
    status: int  # 0 when no response was seen; of gRPC: its status code
    http_version: str  # "1.0" | "1.1" | "2"
    count: int
    sum_ns: int
    buckets: tuple[int, ...]
    tls: bool = False  # seen inside TLS
    grpc: bool = False


# --- decoding -------------------------------------------------------------------------------

_SHORT = Struct(abi.SPAN.format.removesuffix(f"{abi.Abi.TRACESTATE_MAX}s"))
_KINDS = {kind.value: kind.name.lower() for kind in abi.Kind}
_EVIDENCE = {e.value: e.name.lower() for e in abi.Evidence}
_ENDS = {end.value: end.name.lower() for end in abi.End}
_METHODS = {m.value: m.name for m in abi.Method}
_METHODS[abi.Method.OTHER] = "_OTHER"
_NO_PARENT = bytes(8)
_MAPPED = bytes(10) + b"\xff\xff"

COUNTERS = tuple(
    counter.name.lower() for counter in abi.Counter if counter is not abi.Counter.COUNTERS
)


@lru_cache(maxsize=4096)
def _address(raw: bytes) -> str:
    if raw.startswith(_MAPPED):
        return inet_ntop(AF_INET, raw[12:])
    return inet_ntop(AF_INET6, raw)


def _version(major: int, minor: int) -> str:
    """The version of HTTP in the words of OpenTelemetry; the kernel's 0 is HTTP/1."""
    return str(major) if major else f"1.{minor}"


def decode_span(data: bytes, *, unix_offset_ns: int) -> SpanRecord:
    """Decodes one ring-buffer record; `unix_offset_ns` is Unix time minus CLOCK_MONOTONIC.

    Raises struct.error for a record that is too short.
    """
    (
        start,
        end,
        cgroup_id,
        trace_id,
        span_id,
        parent,
        local,
        peer,
        local_port,
        peer_port,
        status,
        kind,
        evidence,
        flags,
        minor,
        how,
        method_length,
        target_length,
        host_length,
        tracestate_length,
        span_flags,
        major,
        pid,
        method,
        host,
        target,
    ) = _SHORT.unpack_from(data)
    return SpanRecord(
        kind=_KINDS[kind],
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=None if parent == _NO_PARENT else parent,
        trace_flags=flags,
        evidence=_EVIDENCE[evidence],
        end=_ENDS[how],
        start_unix_ns=start + unix_offset_ns,
        end_unix_ns=end + unix_offset_ns,
        cgroup_id=cgroup_id,
        pid=pid,
        method=method[:method_length].decode("latin-1"),
        target=target[:target_length].decode("latin-1"),
        target_length=target_length,
        host=host[:host_length].decode("latin-1").rstrip(),
        http_version=_version(major, minor),
        status=status,
        local_address=_address(local),
        local_port=local_port,
        peer_address=_address(peer),
        peer_port=peer_port,
        tracestate=data[_SHORT.size : _SHORT.size + tracestate_length].decode("latin-1")
        if tracestate_length
        else "",
        tls=bool(span_flags & abi.SpanFlags.SPAN_TLS),
        grpc=bool(span_flags & abi.SpanFlags.SPAN_GRPC),
    )


def decode_duration(key: bytes, values: bytes) -> DurationRow:
    """One entry of the per-CPU duration map: `values` holds one struct per possible CPU."""
    k = abi.DurationKey(*abi.DURATION_KEY.unpack(key))
    total = [0] * (2 + abi.Abi.BUCKETS)
    for row in abi.DURATION.iter_unpack(values):
        total = [a + b for a, b in zip(total, row, strict=True)]
    return DurationRow(
        cgroup_id=k.cgroup_id,
        kind=_KINDS[k.kind],
        method=_METHODS[k.method],
        status=k.status,
        http_version=_version(k.http_major, k.http_minor),
        tls=bool(k.tls),
        grpc=bool(k.grpc),
        count=total[0],
        sum_ns=total[1],
        buckets=tuple(total[2:]),
    )
