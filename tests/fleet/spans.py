"""Spans as a receiver sees them, and the trees they form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

Value = str | bool | int | float | bytes | list["Value"] | dict[str, "Value"] | None

KINDS = {
    SpanMessage.SPAN_KIND_SERVER: "SERVER",
    SpanMessage.SPAN_KIND_CLIENT: "CLIENT",
    SpanMessage.SPAN_KIND_INTERNAL: "INTERNAL",
    SpanMessage.SPAN_KIND_PRODUCER: "PRODUCER",
    SpanMessage.SPAN_KIND_CONSUMER: "CONSUMER",
}


@dataclass(frozen=True, slots=True)
class Span:
    """One received span. Ids are lower-case hex, times Unix nanoseconds, "" is no parent."""

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    error: bool
    attributes: Mapping[str, Value]
    resource: Mapping[str, Value]

    @property
    def service(self) -> str:
        """`service.name` of the resource."""
        return str(self.resource.get("service.name", "unknown_service"))

    @property
    def host(self) -> str:
        """`host.name` of the resource, "" when it is not there."""
        return str(self.resource.get("host.name", ""))

    @property
    def path(self) -> str:
        """The request's path and query, "" for a span that is not HTTP."""
        full = self.attributes.get("url.full")
        if full is not None:
            rest = str(full).partition("://")[2]
            return "/" + rest.partition("/")[2]
        query = self.attributes.get("url.query")
        path = str(self.attributes.get("url.path", ""))
        return f"{path}?{query!s}" if query else path

    @property
    def scheme(self) -> str:
        """Of the URL: http, https, or "" for a span that is not HTTP."""
        return str(
            self.attributes.get("url.scheme")
            or str(self.attributes.get("url.full", "")).partition("://")[0]
        )

    @property
    def method(self) -> str:
        """The HTTP method, or the span's name for a span that is not HTTP."""
        return str(self.attributes.get("http.request.method", self.name))

    @property
    def status(self) -> int | None:
        """The HTTP status, None when no response was seen."""
        status = self.attributes.get("http.response.status_code")
        return status if isinstance(status, int) else None

    @property
    def evidence(self) -> str:
        """What proved the parent, "" when the exporter does not say."""
        return str(self.attributes.get("throughline.parent.evidence", ""))

    @property
    def milliseconds(self) -> float:
        """Duration."""
        return (self.end_ns - self.start_ns) / 1e6


def value(message: AnyValue) -> Value:
    """An OTLP attribute value as a Python value."""
    match message.WhichOneof("value"):
        case "array_value":
            return [value(one) for one in message.array_value.values]
        case "kvlist_value":
            return attributes(message.kvlist_value.values)
        case None:
            return None
        case field:
            plain: str | bool | int | float | bytes = getattr(message, field)
            return plain


def attributes(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    """OTLP attributes as a dict."""
    return {pair.key: value(pair.value) for pair in pairs}


def decode(body: bytes) -> list[Span]:
    """The spans of one OTLP export request. Raises DecodeError for anything else."""
    request = ExportTraceServiceRequest.FromString(body)
    return [
        Span(
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_span_id=span.parent_span_id.hex(),
            name=span.name,
            kind=KINDS.get(span.kind, "UNSPECIFIED"),
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            error=span.status.code == span.status.STATUS_CODE_ERROR,
            attributes=attributes(span.attributes),
            resource=attributes(resource.resource.attributes),
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def by_trace(spans: Iterable[Span]) -> dict[str, list[Span]]:
    """Spans of each trace, in order of their start."""
    traces: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: (span.start_ns, span.span_id)):
        traces.setdefault(span.trace_id, []).append(span)
    return traces


def walk(spans: Iterable[Span]) -> Iterator[tuple[Span, int]]:
    """The spans of one trace from the root down, each with its depth.

    A span whose parent was not received (a remote client's, say) is a root too.
    """
    ordered = list(spans)
    known = {span.span_id for span in ordered}
    children: dict[str, list[Span]] = {}
    for span in ordered:
        parent = span.parent_span_id if span.parent_span_id in known else ""
        children.setdefault(parent, []).append(span)
    stack = [(span, 0) for span in reversed(children.get("", []))]
    while stack:
        span, depth = stack.pop()
        yield span, depth
        stack += [(child, depth + 1) for child in reversed(children.get(span.span_id, []))]
