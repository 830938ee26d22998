"""What the kernel tells: one record for each finished, sampled span, and duration histograms.

The layouts come from `bpf/core/abi.h`. Only bytes are decoded into these classes here, so that the
later stages can be tested from recorded records without root.
A span stays a `RawSpan` on its way to the export, which needs its parts only now and then.
"""

from __future__ import annotations

from codecs import utf_8_decode
from dataclasses import dataclass
from functools import cache, lru_cache
from operator import add
from socket import AF_INET, AF_INET6, inet_ntop
from struct import Struct, error

from throughline.bpf import abi

Buffer = bytes | memoryview


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
    method: str  # as on the wire, at most 16 bytes
    target: str  # request target as on the wire, at most 256 bytes
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
class RawSpan:
    """One finished span as it came: the bytes of struct tl_span, see `SPAN_HEAD`."""

    data: bytes
    unix_offset_ns: int  # Unix time minus CLOCK_MONOTONIC

    def owner(self) -> tuple[int, str]:
        """The cgroup's id and the kind. Raises what `decode` would raise, and is 20 times as fast.

        KeyError: a value that this version does not know. struct.error: too few bytes.
        """
        if len(self.data) < SPAN_HEAD.size:
            raise error(f"a span of {len(self.data)} bytes; expected at least {SPAN_HEAD.size}")
        cgroup_id, kind, evidence, how = _OWNER.unpack_from(self.data)
        if evidence not in _EVIDENCE:
            raise KeyError(evidence)
        if how not in _ENDS:
            raise KeyError(how)
        return cgroup_id, _KINDS[kind]

    def decode(self) -> SpanRecord:
        """Its parts."""
        return decode_span(self.data, unix_offset_ns=self.unix_offset_ns)


@dataclass(frozen=True, slots=True)
class SeriesKey:
    """What the requests of one duration histogram have in common."""

    kind: str  # "server" | "client"
    method: str  # a known method or "_OTHER"
    status: int  # 0 when no response was seen; of gRPC: its status code
    http_version: str  # "1.0" | "1.1" | "2"
    tls: bool = False  # seen inside TLS
    grpc: bool = False


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations of requests, counted in the kernel for all of them, sampled or not.

    `buckets` has 15 counts: the OpenTelemetry bounds 0.005 0.01 0.025 0.05 0.075 0.1 0.25 0.5 0.75
    1 2.5 5 7.5 10 seconds, and what lies above.
    """

    sum_ns: int
    buckets: tuple[int, ...]

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.sum_ns + other.sum_ns, tuple(map(add, self.buckets, other.buckets)))


NO_REQUESTS = Histogram(0, (0,) * abi.Abi.BUCKETS)


# --- decoding -------------------------------------------------------------------------------

# struct tl_span up to its `tracestate`, which a record has only when it is not empty
SPAN_HEAD = Struct(abi.SPAN.format.removesuffix(f"{abi.Abi.TRACESTATE_MAX}s"))
NO_PARENT = bytes(8)
_OWNER = Struct("<16xQ70x2B2xB")  # cgroup_id, kind, evidence, end: a test compares with abi.SPAN
_KINDS = {kind.value: kind.name.lower() for kind in abi.Kind}
_EVIDENCE = {e.value: e.name.lower() for e in abi.Evidence}
_ENDS = {end.value: end.name.lower() for end in abi.End}
_METHODS = {m.value: m.name for m in abi.Method}
_METHODS[abi.Method.OTHER] = "_OTHER"
_MAPPED = bytes(10) + b"\xff\xff"

COUNTERS = tuple(
    counter.name.lower() for counter in abi.Counter if counter is not abi.Counter.COUNTERS
)


@lru_cache(maxsize=4096)
def address(raw: bytes) -> str:
    if raw.startswith(_MAPPED):
        return inet_ntop(AF_INET, raw[12:])
    return inet_ntop(AF_INET6, raw)


def text(data: bytes, *, cut: bool = False) -> str:
    """Bytes of a request as text; those that are not UTF-8 become surrogates (throughline.text).

    `cut`: the kernel kept the beginning only, so the last character may lack bytes and is left out.
    """
    return utf_8_decode(data, "surrogateescape", not cut)[0]


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
    ) = SPAN_HEAD.unpack_from(data)
    return SpanRecord(
        kind=_KINDS[kind],
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=None if parent == NO_PARENT else parent,
        trace_flags=flags,
        evidence=_EVIDENCE[evidence],
        end=_ENDS[how],
        start_unix_ns=start + unix_offset_ns,
        end_unix_ns=end + unix_offset_ns,
        cgroup_id=cgroup_id,
        pid=pid,
        method=text(method[:method_length]),
        target=text(target[:target_length], cut=target_length > abi.Abi.TARGET_MAX),
        target_length=target_length,
        host=text(host[:host_length].rstrip(b" \t"), cut=host_length == abi.Abi.HOST_MAX),
        http_version=_version(major, minor),
        status=status,
        local_address=address(local),
        local_port=local_port,
        peer_address=address(peer),
        peer_port=peer_port,
        tracestate=text(data[SPAN_HEAD.size : SPAN_HEAD.size + tracestate_length]),
        tls=bool(span_flags & abi.SpanFlags.SPAN_TLS),
        grpc=bool(span_flags & abi.SpanFlags.SPAN_GRPC),
    )


def decode_series(key: bytes) -> tuple[int, SeriesKey]:
    """A key of the duration map: the cgroup's id, and the series."""
    k = abi.DurationKey(*abi.DURATION_KEY.unpack(key))
    version = _version(k.http_major, k.http_minor)
    series = SeriesKey(
        _KINDS[k.kind], _METHODS[k.method], k.status, version, bool(k.tls), bool(k.grpc)
    )
    return k.cgroup_id, series


def decode_histogram(values: Buffer) -> Histogram:
    """A value of the duration map, which is per CPU: one struct tl_duration after another."""
    size = abi.DURATION.size // 8
    words = memoryview(values).cast("B").cast("Q").tolist()
    totals = [sum(words[at::size]) for at in range(size)]
    return Histogram(totals[1], tuple(totals[2:]))


@cache
def _counts(cpus: int) -> Struct:
    return Struct("<" + f"Q{abi.DURATION.size - 8}x" * cpus)


def decode_count(values: Buffer) -> int:
    """Only how many requests a histogram has: a twentieth of the work."""
    return sum(_counts(len(values) // abi.DURATION.size).unpack(values))
