"""OTLP requests of spans as bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

from throughline.export.templates import Templates
from throughline.records.spanrecord import RawSpan, SpanRecord
from throughline.services.naming import Service
from throughline.telemetry import messages, spans
from throughline.telemetry.conventions import SCHEMA_URL

_MAX_SERVICES = 4096  # of which the bytes are kept

# Tags of the fields that hold messages: their length and their bytes follow.
_SPANS = b"\x12"  # ScopeSpans.spans
_SCOPE_SPANS = b"\x12"  # ResourceSpans.scope_spans
_RESOURCE_SPANS = b"\x0a"  # ExportTraceServiceRequest.resource_spans

_SCOPE = messages.encode(ScopeSpans(scope=messages.SCOPE))
_SCOPE_SCHEMA = messages.encode(ScopeSpans(schema_url=SCHEMA_URL))
_RESOURCE_SCHEMA = messages.encode(ResourceSpans(schema_url=SCHEMA_URL))


@dataclass(frozen=True, slots=True)
class EncodedSpan:
    """A span, and the field of a ResourceSpans with its resource."""

    span: bytes
    resource: bytes


def encode(span: RawSpan | SpanRecord, service: Service, templates: Templates) -> EncodedSpan:
    """Raises an exception (ValueError, TypeError, …) for a record of which there is no message."""
    if isinstance(span, RawSpan):
        return EncodedSpan(templates.encode(span), _resource(service))
    return EncodedSpan(messages.encode(spans.message(span)), _resource(service))


def request(encoded: Iterable[EncodedSpan]) -> bytes:
    """An ExportTraceServiceRequest: one ResourceSpans for each resource."""
    by_resource: dict[bytes, list[bytes]] = defaultdict(list)
    for one in encoded:
        by_resource[one.resource] += (_SPANS, _varint(len(one.span)), one.span)
    parts = []
    for resource, of_resource in by_resource.items():
        scope = b"".join((_SCOPE, *of_resource, _SCOPE_SCHEMA))
        parts.append(
            _field(_RESOURCE_SPANS, resource + _field(_SCOPE_SPANS, scope) + _RESOURCE_SCHEMA)
        )
    return b"".join(parts)


@lru_cache(maxsize=_MAX_SERVICES)
def _resource(service: Service) -> bytes:
    return messages.encode(ResourceSpans(resource=messages.resource(service)))


def _field(tag: bytes, content: bytes) -> bytes:
    return b"".join((tag, _varint(len(content)), content))


def _varint(value: int) -> bytes:
    """https://protobuf.dev/programming-guides/encoding/#varints"""
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    return bytes((value & 0x7F | 0x80,)) + _varint(value >> 7)
