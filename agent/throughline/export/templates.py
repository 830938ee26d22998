"""Spans as bytes, put together from templates.

`telemetry/spans.py` makes a message of a record attribute by attribute, and protobuf makes bytes of
the message. Almost all of these bytes repeat: kind, method, status, host and so on. A template
keeps the bytes of one such message without ids, times, peer and URL. For each further record that
differs in nothing else, its own ids, times, peer and URL are put in between. A record that no
template can serve is encoded through its message. A test compares 20,000 records of all kinds with
what their messages give, byte for byte.

Bytes are joined, not parsed. Protobuf writes the fields of a message in the order of their numbers
and each field by itself, so that the bytes of a message are those of its parts, one after another
(https://protobuf.dev/programming-guides/encoding/). Only fields of a fixed size are written here by
hand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from throughline.bpf import abi
from throughline.records import spanrecord
from throughline.records.spanrecord import (
    NO_PARENT,
    SPAN_HEAD,
    TRACESTATE_AT,
    RawSpan,
    SpanRecord,
)
from throughline.telemetry import messages, spans
from throughline.text import utf8

MAX_TEMPLATES = 2048  # of about 1 KB each
_MAX_VALUES = 4096  # of each kind of value whose bytes are kept

# Fields of a span whose values have a fixed size: tag and length, or the tag alone.
_TRACE_ID = b"\x0a\x10"
_SPAN_ID = b"\x12\x08"
_PARENT_SPAN_ID = b"\x22\x08"
_START, _END = b"\x39", b"\x41"
_TIMES = Struct("<cQcQ")

_SENSITIVE = re.compile(spans.SENSITIVE.encode())
_SERVER = int(abi.Kind.SERVER)
_JOB = int(abi.Kind.JOB)
_GRPC = int(abi.SpanFlags.SPAN_GRPC)
_UNIX = int(abi.SpanFlags.SPAN_UNIX)
_TARGET_MAX = int(abi.Abi.TARGET_MAX)
_HOST_MAX = int(abi.Abi.HOST_MAX)
# These attributes stand next to each other. A template has none of them.
_OF_REQUEST = frozenset(
    (
        "client.address",
        "network.peer.address",
        "network.peer.port",
        "url.path",
        "url.query",
        "url.full",
    )
)

_Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _Template:
    """The bytes of a span that repeat."""

    named: bytes  # name and kind
    before: bytes  # attributes in front of those of the request
    base: bytes  # the value of `url.full` up to the path
    after: bytes  # the other attributes, status and flags


class Templates:
    """Makes a template for what comes twice, and keeps at most MAX_TEMPLATES.

    Strangers choose method, host and status. What they send once costs no template its place.
    Not for several threads at once.
    """

    def __init__(self) -> None:
        self._known: dict[_Key, _Template] = {}
        self._met: set[_Key] = set()  # came once

    def __len__(self) -> int:
        return len(self._known)

    def encode(self, span: RawSpan) -> bytes:
        """The bytes of a span. Raises an exception for a record of which there is no message."""
        data = span.data
        # the order of struct tl_span: names, as `spanrecord.unpack` gives them, take 1 µs more
        (
            start,
            end,
            _cgroup_id,
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
            _trace_flags,
            minor,
            how,
            method_length,
            target_length,
            host_length,
            tracestate_length,
            flags,
            major,
            _pid,
            method,
            host,
            target,
        ) = SPAN_HEAD.unpack_from(data)
        start += span.unix_offset_ns
        end += span.unix_offset_ns
        target = target[:target_length]
        path, _, query = target.partition(b"?")
        url = target if query else path
        if (
            kind == _JOB
            or target_length > _TARGET_MAX
            or host_length > _HOST_MAX
            or target[:1] != b"/"
            or not target.isascii()
            or _SENSITIVE.search(query)
            or not (start and end)  # protobuf leaves out a zero
        ):
            return _encode(span.decode())
        grpc = flags & _GRPC
        server = kind == _SERVER
        unix = flags & _UNIX
        socket = spanrecord.path_of(data) if unix else ""
        if host[:1].isalnum() and not grpc:
            address, port = b"", 0
        else:  # they stand for a host or a port that is not named
            address, port = (local, local_port) if server else (peer, peer_port)
        key = (
            kind,
            status,
            method[:method_length],
            host[:host_length],
            address,
            port,
            socket,
            target if grpc else None,
            evidence,
            how,
            flags,
            minor,
            major,
            parent == NO_PARENT,
        )
        template = self._known.get(key)
        if template is None:
            return self._learn(key, span.decode(), url)
        if server:
            of_request = b"" if unix else _client_address(peer)
            if not grpc:
                of_request += _head("url.path", len(path)) + path
                if query:
                    of_request += _head("url.query", len(query)) + query
        else:
            of_request = _unix_peer(socket) if unix else _peer(peer, peer_port)
            if not grpc:
                url = template.base + url
                of_request += _head("url.full", len(url)) + url
        stop = TRACESTATE_AT + tracestate_length
        return b"".join(
            (
                _TRACE_ID,
                trace_id,
                _SPAN_ID,
                span_id,
                _trace_state(data[TRACESTATE_AT:stop]) if tracestate_length else b"",
                b"" if parent == NO_PARENT else _PARENT_SPAN_ID + parent,
                template.named,
                _TIMES.pack(_START, start, _END, end),
                template.before,
                of_request,
                template.after,
            )
        )

    def _learn(self, key: _Key, record: SpanRecord, url: bytes) -> bytes:
        """Encodes a record that has no template yet; `url` is its path and query."""
        message = spans.message(record)
        if key in self._met:
            self._met.discard(key)
            if len(self._known) >= MAX_TEMPLATES:
                self._known.clear()
            self._known[key] = _template(message, url)
        else:
            if len(self._met) >= MAX_TEMPLATES:
                self._met.clear()
            self._met.add(key)
        return messages.encode(message)


def _encode(record: SpanRecord) -> bytes:
    return messages.encode(spans.message(record))


def _template(message: Span, url: bytes) -> _Template:
    attributes = list(message.attributes)
    varying = [at for at, one in enumerate(attributes) if one.key in _OF_REQUEST]
    first = varying[0] if varying else len(attributes)
    last = varying[-1] + 1 if varying else first
    full = "".join(one.value.string_value for one in attributes if one.key == "url.full")
    return _Template(
        named=messages.encode(Span(name=message.name, kind=message.kind)),
        before=messages.encode(Span(attributes=attributes[:first])),
        base=full.encode().removesuffix(url),
        after=messages.encode(
            Span(attributes=attributes[last:], status=message.status, flags=message.flags)
        ),
    )


@lru_cache(maxsize=_MAX_VALUES)
def _client_address(raw: bytes) -> bytes:
    attribute = messages.attribute("client.address", spanrecord.address(raw))
    return messages.encode(Span(attributes=[attribute]))


@lru_cache(maxsize=_MAX_VALUES)
def _peer(raw: bytes, port: int) -> bytes:
    values: dict[str, str | int] = {
        "network.peer.address": spanrecord.address(raw),
        "network.peer.port": port,
    }
    return messages.encode(Span(attributes=messages.attributes(values)))


@lru_cache(maxsize=_MAX_VALUES)
def _unix_peer(path: str) -> bytes:
    if not path:
        return b""
    attribute = messages.attribute("network.peer.address", utf8(path))
    return messages.encode(Span(attributes=[attribute]))


@lru_cache(maxsize=_MAX_VALUES)
def _trace_state(raw: bytes) -> bytes:
    state = spans.trace_state(utf8(spanrecord.text(raw)))
    return messages.encode(Span(trace_state=state))


@lru_cache(maxsize=_MAX_VALUES)
def _head(key: str, length: int) -> bytes:
    """The bytes of an attribute in front of a text of this length."""
    attribute = messages.attribute(key, "x" * length)
    return messages.encode(Span(attributes=[attribute]))[:-length]
