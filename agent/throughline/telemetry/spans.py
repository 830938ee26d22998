"""Turn a kernel record and its service into an OpenTelemetry span.

Attributes follow the stable HTTP semantic conventions,
https://opentelemetry.io/docs/specs/semconv/http/http-spans/, and for calls of gRPC
https://opentelemetry.io/docs/specs/semconv/rpc/grpc/. Attributes of our own:
`throughline.parent.evidence` (how the parent was found, see DESIGN: finding the parent),
`throughline.end` (only when the exchange did not complete) and `throughline.url.length` (only when
the kernel kept less of the request target than was on the wire: the full length in bytes).
Every attribute costs the encoder 2 us, so a server span has no `network.peer.*`: its peer is the
`client.address`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from throughline import __version__
from throughline.records.events import SpanRecord
from throughline.services.naming import Service
from throughline.text import utf8

SCHEMA_URL = "https://opentelemetry.io/schemas/1.30.0"
SCOPE = InstrumentationScope("throughline", __version__, SCHEMA_URL)
METHODS = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
)
TARGET_MAX = 256  # TL_TARGET_MAX of abi.h: bytes of the request target that the kernel keeps
# UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS
GRPC_SERVER_ERRORS = frozenset((2, 4, 12, 13, 14, 15))
CONNECTION_CLOSED = "connection_closed"  # error.type where the connection ended with no response

_SENSITIVE = re.compile(r"(?<![^?&])(AWSAccessKeyId|Signature|sig|X-Goog-Signature)=[^&#]*")
_UNSET = Status(StatusCode.UNSET)
_ERROR = Status(StatusCode.ERROR)
_NO_STATE = TraceState()
_FLAGS = tuple(TraceFlags(value) for value in range(256))
_from_bytes = int.from_bytes


class _Resource(Resource):
    """A resource which computes its hash once; the encoder asks for it with every span."""

    _hash: int | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = super().__hash__()
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)


@lru_cache(maxsize=4096)
def resource(service: Service) -> Resource:
    """The OpenTelemetry resource of a service, the same object each time."""
    return _Resource(service.attributes, SCHEMA_URL)


def span(record: SpanRecord, service: Service) -> ReadableSpan:
    """The OpenTelemetry span of one record. Hostile bytes become U+FFFD, never an error."""
    server = record.kind == "server"
    attributes: dict[str, Any] = {}
    describe = _describe_grpc if record.grpc else _describe_http
    name, failed = describe(attributes, record, server=server)
    attributes["throughline.parent.evidence"] = record.evidence
    if record.end != "complete":
        attributes["throughline.end"] = record.end
    if record.target_length > TARGET_MAX:
        attributes["throughline.url.length"] = record.target_length

    trace_id = _from_bytes(record.trace_id, "big")
    flags = _FLAGS[record.trace_flags & 0xFF]
    state = trace_state(utf8(record.tracestate)) if record.tracestate else _NO_STATE
    parent = None
    if record.parent_span_id is not None:
        remote = server and record.evidence in ("header", "packet")
        parent = SpanContext(
            trace_id, _from_bytes(record.parent_span_id, "big"), remote, flags, state
        )
    return ReadableSpan(
        name=name,
        context=SpanContext(trace_id, _from_bytes(record.span_id, "big"), False, flags, state),
        parent=parent,
        resource=resource(service),
        attributes=attributes,
        kind=SpanKind.SERVER if server else SpanKind.CLIENT,
        status=_ERROR if failed else _UNSET,
        start_time=record.start_unix_ns,
        end_time=record.end_unix_ns,
        instrumentation_scope=SCOPE,
    )


def _describe_http(
    attributes: dict[str, Any], record: SpanRecord, *, server: bool
) -> tuple[str, bool]:
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
    failed = status >= (500 if server else 400)
    if failed:
        attributes["error.type"] = str(status)
    return method, failed


def _describe_grpc(
    attributes: dict[str, Any], record: SpanRecord, *, server: bool
) -> tuple[str, bool]:
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


def grpc_failed(status: int, *, server: bool) -> bool:
    """Is a call with this status code an error? Not of the server what its client did wrong."""
    return status in GRPC_SERVER_ERRORS if server else status != 0


def _address(attributes: dict[str, Any], record: SpanRecord, *, server: bool) -> None:
    """url.*, server.* and client.*: the target's own authority wins over the Host header."""
    scheme, authority, path, query = split_target(record.target)
    if record.tls:
        scheme = "https"
    host, port = authority_of(authority or record.host)
    default = 443 if scheme == "https" else 80
    if not host:
        host = record.local_address if server else record.peer_address
        default = record.local_port if server else record.peer_port
    attributes["server.address"] = host
    attributes["server.port"] = port or default
    if server:
        attributes["url.scheme"] = scheme
        attributes["client.address"] = record.peer_address
        if path:
            attributes["url.path"] = path
        if query:
            attributes["url.query"] = redact(query)
        return
    attributes["network.peer.address"] = record.peer_address
    attributes["network.peer.port"] = record.peer_port
    shown = f"[{host}]" if ":" in host else host
    if port and port != (443 if scheme == "https" else 80):
        shown = f"{shown}:{port}"
    elif not port and default not in (80, 443):
        shown = f"{shown}:{default}"
    full = f"{scheme}://{shown}{path}" if path.startswith("/") else f"{scheme}://{shown}"
    attributes["url.full"] = f"{full}?{redact(query)}" if query else full


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
def trace_state(header: str) -> TraceState:
    """The SDK's TraceState of a `tracestate` header value."""
    return TraceState.from_header([header])
