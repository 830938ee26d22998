"""The record of a finished, sampled span: struct tl_span of bpf/core/abi.h, and its decoded form.

Nothing here needs the kernel: later stages are tested with recorded bytes, without root. A span
stays a `RawSpan` on its way to the export, which decodes only few of them.
"""

from __future__ import annotations

from codecs import utf_8_decode
from dataclasses import dataclass
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop
from struct import Struct, error

from throughline.bpf import abi


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """A finished span, decoded.

    Times are Unix nanoseconds; ids are raw bytes; addresses are text (IPv4-mapped ones as IPv4).
    """

    kind: str  # "server" | "client" | "job"
    trace_id: bytes  # 16 bytes
    span_id: bytes  # 8 bytes
    parent_span_id: bytes | None  # 8 bytes, None for a root
    trace_flags: int
    evidence: str  # "none" | "header" | "connect" | "restore" | "thread" | "packet" |
    # "goroutine" | "context" | "python" | "java" | "unix" | "tick" | "proxy" | "ruby" | "node" |
    # "job"
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
    status: int  # 0 when no response was seen; of gRPC: its status code, where 0 is OK;
    # of a job: abi.Jobs
    local_address: str
    local_port: int
    peer_address: str
    peer_port: int
    tracestate: str  # "" when there is none
    tls: bool = False  # seen inside TLS
    grpc: bool = False  # a call of gRPC: the target is /SERVICE/METHOD
    unix: bool = False  # on a Unix socket: addresses and ports say nothing
    path: str = ""  # of the Unix socket, "@NAME" for an abstract one, "" where there is none
    likely: bool = False  # the parent is likely, not proven


@dataclass(frozen=True, slots=True)
class RawSpan:
    """A finished span as the kernel wrote it: the bytes of struct tl_span, see `SPAN_HEAD`."""

    data: bytes
    unix_offset_ns: int  # Unix time minus CLOCK_MONOTONIC

    def owner(self) -> tuple[int, str]:
        """The cgroup's id and the kind; 20 times as fast as `decode`, and raises the same errors.

        KeyError: a value that this version does not know. struct.error: too few bytes.
        """
        if len(self.data) < SPAN_HEAD.size:
            raise error(f"a span of {len(self.data)} bytes; expected at least {SPAN_HEAD.size}")
        cgroup_id, kind, evidence, how = _OWNER.unpack_from(self.data)
        if evidence not in _EVIDENCE:
            raise KeyError(evidence)
        if how not in _ENDS:
            raise KeyError(how)
        return cgroup_id, KINDS[kind]

    def decode(self) -> SpanRecord:
        """Decodes all fields; see `decode_span`."""
        return decode_span(self.data, unix_offset_ns=self.unix_offset_ns)


# --- decoding -------------------------------------------------------------------------------

# struct tl_span: a record has `tracestate` only when it is not empty, `path` only with either
_PATH = f"{abi.Abi.PATH_MAX}sH2x"
SPAN_HEAD = Struct(abi.SPAN.format.removesuffix(f"{_PATH}{abi.Abi.TRACESTATE_MAX}s"))
_SPAN_PATH = Struct(f"<{_PATH}")
TRACESTATE_AT = SPAN_HEAD.size + _SPAN_PATH.size
NO_PARENT = bytes(8)
_OWNER = Struct("<16xQ70x2B2xB")  # cgroup_id, kind, evidence, end: a test compares with abi.SPAN
KINDS = {kind.value: kind.name.lower() for kind in abi.Kind}
_EVIDENCE = {e.value: e.name.lower() for e in abi.Evidence}
_ENDS = {end.value: end.name.lower() for end in abi.End}
_MAPPED = bytes(10) + b"\xff\xff"


@lru_cache(maxsize=4096)
def address(raw: bytes) -> str:
    if raw.startswith(_MAPPED):
        return inet_ntop(AF_INET, raw[12:])
    return inet_ntop(AF_INET6, raw)


def text(data: bytes, *, cut: bool = False) -> str:
    """Bytes of a request as text. Bytes that are not UTF-8 become surrogates (throughline.text).

    `cut`: the kernel kept only the beginning. An incomplete last character is left out.
    """
    return utf_8_decode(data, "surrogateescape", not cut)[0]


def http_version(major: int, minor: int) -> str:
    """The value of network.protocol.version. A major version of 0 means HTTP/1."""
    return str(major) if major else f"1.{minor}"


def unpack(data: bytes) -> abi.Span:
    """The fields of a record. `path` and `tracestate` are empty where the record has no such field.

    Raises struct.error for a record that is too short.
    """
    path = (b"", 0)
    if len(data) >= TRACESTATE_AT:
        path = _SPAN_PATH.unpack_from(data, SPAN_HEAD.size)
    return abi.Span._make((*SPAN_HEAD.unpack_from(data), *path, data[TRACESTATE_AT:]))


def path_of(data: bytes) -> str:
    """The path of a record's Unix socket, "@NAME" for an abstract one, "" where there is none."""
    if len(data) < TRACESTATE_AT:
        return ""
    path, length = _SPAN_PATH.unpack_from(data, SPAN_HEAD.size)
    return _path(path[:length])


@lru_cache(maxsize=4096)
def _path(raw: bytes) -> str:
    return f"@{text(raw[1:])}" if raw.startswith(b"\0") else text(raw)


def decode_span(data: bytes, *, unix_offset_ns: int) -> SpanRecord:
    """Decodes one ring-buffer record; `unix_offset_ns` is Unix time minus CLOCK_MONOTONIC.

    Raises struct.error for a record that is too short.
    """
    span = unpack(data)
    return SpanRecord(
        kind=KINDS[span.kind],
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=None if span.parent_span_id == NO_PARENT else span.parent_span_id,
        trace_flags=span.trace_flags,
        evidence=_EVIDENCE[span.evidence],
        end=_ENDS[span.end],
        start_unix_ns=span.start_ns + unix_offset_ns,
        end_unix_ns=span.end_ns + unix_offset_ns,
        cgroup_id=span.cgroup_id,
        pid=span.pid,
        method=text(span.method[: span.method_len]),
        target=text(span.target[: span.target_len], cut=span.target_len > abi.Abi.TARGET_MAX),
        target_length=span.target_len,
        host=text(span.host[: span.host_len].rstrip(b" \t"), cut=span.host_len == abi.Abi.HOST_MAX),
        http_version=http_version(span.http_major, span.http_minor),
        status=span.status,
        local_address=address(span.local_addr),
        local_port=span.local_port,
        peer_address=address(span.peer_addr),
        peer_port=span.peer_port,
        tracestate=text(span.tracestate[: span.tracestate_len]),
        tls=bool(span.flags & abi.SpanFlags.SPAN_TLS),
        grpc=bool(span.flags & abi.SpanFlags.SPAN_GRPC),
        unix=bool(span.flags & abi.SpanFlags.SPAN_UNIX),
        path=_path(span.path[: span.path_len]),
        likely=bool(span.flags & abi.SpanFlags.SPAN_LIKELY),
    )
