"""Turn a record of the kernel into an OTLP span.

Attributes follow the stable HTTP semantic conventions,
https://opentelemetry.io/docs/specs/semconv/http/http-spans/, and for calls of gRPC
https://opentelemetry.io/docs/specs/semconv/rpc/grpc/. Attributes of our own:
`throughline.parent.evidence` (how the parent was found, see docs/operator/propagation.md),
`throughline.end` (only when the exchange did not complete) and `throughline.url.length` (only when
the kernel kept less of the request target than was on the wire: the full length in bytes).
A server span has no `network.peer.*`: its peer is the `client.address`. The span of a job of a
queue has `throughline.job` instead: the kernel does not see what the job is.

`export/templates.py` writes most spans from templates that it makes of these messages. An attribute
whose value differs from request to request must be known there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status

from throughline.bpf import abi
from throughline.records.spanrecord import SpanRecord
from throughline.telemetry import messages
from throughline.telemetry.conventions import (
    CONNECTION_CLOSED,
    METHODS,
    grpc_failed,
    http_failed,
)
from throughline.text import utf8

TARGET_MAX = 256  # TL_TARGET_MAX of abi.h: bytes of the request target that the kernel keeps
# Query parameters that are credentials: the semantic conventions ask to hide their values.
SENSITIVE = r"(?<![^?&])(AWSAccessKeyId|Signature|sig|X-Goog-Signature)=[^&#]*"

_SENSITIVE = re.compile(SENSITIVE)
_UNSET = Status()
_ERROR = Status(code=Status.STATUS_CODE_ERROR)
_KINDS = {
    "server": Span.SPAN_KIND_SERVER,
    "client": Span.SPAN_KIND_CLIENT,
    "job": Span.SPAN_KIND_CONSUMER,
}
_JOBS = {job.value: job.name.lower() for job in abi.Jobs}
_LOCAL = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_REMOTE = _LOCAL | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK

# A member of `tracestate`: https://www.w3.org/TR/trace-context-2/#list
_MEMBER = re.compile(
    r"([a-z][_0-9a-z\-*/]{0,255}|[a-z0-9][_0-9a-z\-*/]{0,240}@[a-z][_0-9a-z\-*/]{0,13})"
    r"=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])"
)
_MAX_MEMBERS = 32

Attributes = dict[str, str | int]


@dataclass(frozen=True, slots=True)
class Description:
    """What the semantic conventions say of a record."""

    name: str
    attributes: Attributes
    failed: bool


def message(record: SpanRecord) -> Span:
    """The OTLP span of a record. Bytes that are not UTF-8 become U+FFFD.

    Raises an exception (ValueError, TypeError, …) for a record that no kernel makes: one that was
    damaged on disk.
    """
    if len(record.trace_id) != 16 or len(record.span_id) != 8:
        raise ValueError("an id has the wrong length")
    server = record.kind == "server"
    described = describe(record)
    span = Span(
        trace_id=record.trace_id,
        span_id=record.span_id,
        name=described.name,
        kind=_KINDS[record.kind],
        start_time_unix_nano=record.start_unix_ns,
        end_time_unix_nano=record.end_unix_ns,
        attributes=messages.attributes(described.attributes),
        status=_ERROR if described.failed else _UNSET,
        flags=_LOCAL,
    )
    if record.tracestate:
        span.trace_state = trace_state(utf8(record.tracestate))
    if record.parent_span_id is not None:
        if len(record.parent_span_id) != 8:
            raise ValueError("an id has the wrong length")
        span.parent_span_id = record.parent_span_id
        if server and record.evidence in ("header", "packet"):
            span.flags = _REMOTE
    return span


def describe(record: SpanRecord) -> Description:
    """Name, attributes and result of a record."""
    if record.kind == "job":
        return _describe_job(record)
    server = record.kind == "server"
    attributes: Attributes = {}
    add = _describe_grpc if record.grpc else _describe_http
    name, failed = add(attributes, record, server=server)
    attributes["throughline.parent.evidence"] = record.evidence
    if record.likely:
        attributes["throughline.parent.trust"] = "likely"
    if record.end != "complete":
        attributes["throughline.end"] = record.end
    if record.target_length > TARGET_MAX:
        attributes["throughline.url.length"] = record.target_length
    return Description(name, attributes, failed)


def _describe_job(record: SpanRecord) -> Description:
    queue = _JOBS[record.status]
    attributes: Attributes = {
        "throughline.job": queue,
        "throughline.parent.evidence": record.evidence,
    }
    return Description(f"{queue} job", attributes, failed=False)


def _describe_http(attributes: Attributes, record: SpanRecord, *, server: bool) -> tuple[str, bool]:
    """Adds the attributes of a request; returns the span's name, and whether it failed."""
    method = record.method
    status = record.status
    attributes["http.request.method"] = method
    if method not in METHODS:
        attributes["http.request.method"] = "_OTHER"
        attributes["http.request.method_original"] = utf8(method)
        method = "HTTP"
    _address(attributes, record, server=server)
    attributes["network.protocol.version"] = record.http_version
    if not status:
        attributes["error.type"] = CONNECTION_CLOSED
        return method, True
    attributes["http.response.status_code"] = status
    failed = http_failed(status, server=server)
    if failed:
        attributes["error.type"] = str(status)
    return method, failed


def _describe_grpc(attributes: Attributes, record: SpanRecord, *, server: bool) -> tuple[str, bool]:
    """The same of a call of gRPC, whose target is /SERVICE/METHOD."""
    name = utf8(record.target).removeprefix("/")
    service, _, method = name.rpartition("/")
    attributes["rpc.system"] = "grpc"
    if service:
        attributes["rpc.service"] = service
    attributes["rpc.method"] = method
    attributes["rpc.grpc.status_code"] = record.status
    if server:
        attributes["server.address"] = record.local_address
        attributes["server.port"] = record.local_port
        attributes["client.address"] = record.peer_address
    else:
        host, port = authority_of(record.host)
        attributes["server.address"] = host or record.peer_address
        attributes["server.port"] = port or record.peer_port
        attributes["network.peer.address"] = record.peer_address
        attributes["network.peer.port"] = record.peer_port
    return name or "grpc", grpc_failed(record.status, server=server)


def _address(attributes: Attributes, record: SpanRecord, *, server: bool) -> None:
    """url.*, server.* and client.*: the target's own authority wins over the Host header."""
    scheme, authority, path, query = split_target(record.target)
    if record.tls:
        scheme = "https"
    host, port = authority_of(authority or record.host)
    default = 443 if scheme == "https" else 80
    if record.unix:
        _unix(attributes, record, host, port, server=server)
        host = host or "localhost"
    else:
        if not host:
            host = record.local_address if server else record.peer_address
            default = record.local_port if server else record.peer_port
        attributes["server.address"] = host
        attributes["server.port"] = port or default
    if server:
        attributes["url.scheme"] = scheme
        if not record.unix:
            attributes["client.address"] = record.peer_address
        if path:
            attributes["url.path"] = path
        if query:
            attributes["url.query"] = redact(query)
        return
    if not record.unix:
        attributes["network.peer.address"] = record.peer_address
        attributes["network.peer.port"] = record.peer_port
    elif record.path:
        attributes["network.peer.address"] = utf8(record.path)
    shown = f"[{host}]" if ":" in host else host
    if port and port != (443 if scheme == "https" else 80):
        shown = f"{shown}:{port}"
    elif not port and default not in (80, 443):
        shown = f"{shown}:{default}"
    full = f"{scheme}://{shown}{path}" if path.startswith("/") else f"{scheme}://{shown}"
    attributes["url.full"] = f"{full}?{redact(query)}" if query else full


def _unix(
    attributes: Attributes, record: SpanRecord, host: str, port: int | None, *, server: bool
) -> None:
    """server.* and network.* of a Unix socket: its path is an address, its client has none."""
    path = utf8(record.path)
    if host or path:
        attributes["server.address"] = host or path
    if port:
        attributes["server.port"] = port
    attributes["network.transport"] = "unix"
    if server and path:
        attributes["network.local.address"] = path


def split_target(target: str) -> tuple[str, str, str, str]:
    """A request target (RFC 9112 section 3.2) as scheme, authority, path, query.

    Origin form and `*` have no authority; authority form (CONNECT) has nothing else. User
    information in an absolute form is left out.
    """
    target = utf8(target)
    scheme, authority = "http", ""
    path, _, query = target.partition("?")
    if path[:1] != "/" and path != "*":
        before, separator, rest = path.partition("://")
        if separator:
            scheme = before.lower()
            authority, slash, rest = rest.partition("/")
            path = f"{slash}{rest}" or "/"
        else:
            authority, path = path, ""
        authority = authority.rpartition("@")[2]
    return scheme, authority, path, query


@lru_cache(maxsize=1024)
def authority_of(value: str) -> tuple[str, int]:
    """Host and port of `host[:port]`; port 0 when there is none. IPv6 loses its brackets."""
    value = utf8(value).strip()
    host, separator, port = value.rpartition(":")
    if not separator or port.endswith("]"):
        host, port = value, ""
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    return host, number if number < 65536 else 0


def redact(query: str) -> str:
    """The query with the values of credentials replaced, as the conventions ask."""
    return _SENSITIVE.sub(r"\1=REDACTED", query)


@lru_cache(maxsize=1024)
def trace_state(header: str) -> str:
    """A `tracestate` header without white space around its members; "" when it is not valid."""
    found: dict[str, str] = {}
    for member in header.split(","):
        stripped = member.strip(" \t")
        if not stripped:
            continue  # empty members are valid
        match = _MEMBER.fullmatch(stripped)
        if match is None or match[1] in found:
            return ""
        found[match[1]] = match[2]
    if len(found) > _MAX_MEMBERS:
        return ""
    return ",".join(f"{key}={value}" for key, value in found.items())
