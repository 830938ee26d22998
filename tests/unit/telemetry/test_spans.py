"""Spans are judged as a backend sees them: decoded from bytes."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.fixtures.records import SHOP, START, record, service
from throughline.bpf import abi
from throughline.export import encoding
from throughline.export.templates import Templates
from throughline.records.spanrecord import SpanRecord
from throughline.services.naming import Service
from throughline.telemetry.spans import authority_of, redact, split_target


def sent(*batch: tuple[SpanRecord, Service]) -> ExportTraceServiceRequest:
    templates = Templates()
    data = encoding.request([encoding.encode(*item, templates) for item in batch])
    request: ExportTraceServiceRequest = ExportTraceServiceRequest.FromString(data)
    return request


def decoded(**changes: Any) -> Span:
    request = sent((record(**changes), SHOP))
    found: Span = request.resource_spans[0].scope_spans[0].spans[0]
    return found


def attributes(found: Span) -> dict[str, str | int]:
    return {
        item.key: item.value.int_value
        if item.value.HasField("int_value")
        else item.value.string_value
        for item in found.attributes
    }


def test_server_span() -> None:
    source = record(tracestate="a=1,b=2")
    request = sent((source, SHOP))
    scope = request.resource_spans[0].scope_spans[0]
    found = scope.spans[0]
    assert (scope.scope.name, scope.scope.version) == ("throughline", "0.1.0")
    assert (found.name, found.kind) == ("GET", Span.SPAN_KIND_SERVER)
    assert (found.trace_id, found.span_id) == (source.trace_id, source.span_id)
    assert (found.parent_span_id, found.trace_state) == (source.parent_span_id, "a=1,b=2")
    assert found.flags == 0x300, "the parent is known to be remote"
    assert (found.start_time_unix_nano, found.end_time_unix_nano) == (START, START + 12_300_000)
    assert found.status.code == Status.STATUS_CODE_UNSET
    assert attributes(found) == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "url.path": "/cart/7",
        "url.query": "user=1",
        "server.address": "shop.example",
        "server.port": 8080,
        "client.address": "10.0.0.2",
        "network.protocol.version": "1.1",
        "http.response.status_code": 200,
        "throughline.parent.evidence": "header",
    }


def test_client_span() -> None:
    found = decoded(kind="client", evidence="thread", peer_address="10.0.0.9", peer_port=8080)
    assert (found.name, found.kind) == ("GET", Span.SPAN_KIND_CLIENT)
    assert found.flags == 0x100, "the parent is of this host"
    assert attributes(found) == {
        "http.request.method": "GET",
        "url.full": "http://shop.example:8080/cart/7?user=1",
        "server.address": "shop.example",
        "server.port": 8080,
        "network.peer.address": "10.0.0.9",
        "network.peer.port": 8080,
        "network.protocol.version": "1.1",
        "http.response.status_code": 200,
        "throughline.parent.evidence": "thread",
    }


def test_job_span() -> None:
    """It has nothing of a request, and its status says which queue it is of."""
    found = decoded(kind="job", status=int(abi.Jobs.CELERY), evidence="none", parent_span_id=None)
    assert (found.name, found.kind) == ("celery job", Span.SPAN_KIND_CONSUMER)
    assert attributes(found) == {"throughline.job": "celery", "throughline.parent.evidence": "none"}
    assert found.status.code == 0


def test_root_span_has_no_parent() -> None:
    assert decoded(parent_span_id=None, evidence="none").parent_span_id == b""


@pytest.mark.parametrize(
    ("kind", "status", "error"),
    [
        ("server", 404, None),
        ("server", 499, None),
        ("server", 500, "500"),
        ("server", 0, "connection_closed"),
        ("client", 399, None),
        ("client", 404, "404"),
        ("client", 503, "503"),
        ("client", 0, "connection_closed"),
    ],
)
def test_status(kind: str, status: int, error: str | None) -> None:
    found = decoded(kind=kind, status=status)
    known = attributes(found)
    assert known.get("error.type") == error
    assert known.get("http.response.status_code") == (status or None)
    failed = Status.STATUS_CODE_ERROR if error else Status.STATUS_CODE_UNSET
    assert found.status.code == failed


def test_unknown_method() -> None:
    found = decoded(method="BREW")
    assert found.name == "HTTP"
    assert attributes(found)["http.request.method"] == "_OTHER"
    assert attributes(found)["http.request.method_original"] == "BREW"
    assert attributes(decoded(method="get"))["http.request.method"] == "_OTHER"


def test_what_is_incomplete_is_said() -> None:
    found = attributes(decoded(target="/" + "a" * 255, target_length=5000, end="closed"))
    assert (found["throughline.url.length"], found["throughline.end"]) == (5000, "closed")


@pytest.mark.parametrize(
    ("target", "host", "expected"),
    [
        ("/a?b=c", "h", "http://h/a?b=c"),
        ("/a?b=c", "h:80", "http://h/a?b=c"),
        ("/", "[::1]:81", "http://[::1]:81/"),
        ("/a", "", "http://10.0.0.2:40001/a"),
        ("http://other:81/x?y", "h", "http://other:81/x?y"),
        ("http://u:p@other", "h", "http://other/"),
        ("https://other/x", "h", "https://other/x"),
        ("HTTP://other/x", "h", "http://other/x"),
        ("*", "h", "http://h"),
        ("other:443", "h", "http://other:443"),
        ("/a?sig=abc&x=1", "h", "http://h/a?sig=REDACTED&x=1"),
        ("/?u=http://x/y", "h", "http://h/?u=http://x/y"),
    ],
)
def test_full_url(target: str, host: str, expected: str) -> None:
    assert attributes(decoded(kind="client", target=target, host=host))["url.full"] == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/a/b?c", ("http", "", "/a/b", "c")),
        ("*", ("http", "", "*", "")),
        ("h:443", ("http", "h:443", "", "")),
        ("http://h:1/p?q?r", ("http", "h:1", "/p", "q?r")),
        ("http://h?q", ("http", "h", "/", "q")),
        ("", ("http", "", "", "")),
        ("//h/p", ("http", "", "//h/p", "")),
        ("/p?", ("http", "", "/p", "")),
    ],
)
def test_split_target(target: str, expected: tuple[str, str, str, str]) -> None:
    assert split_target(target) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("h", ("h", 0)),
        ("h:8080", ("h", 8080)),
        ("[::1]", ("::1", 0)),
        ("[::1]:80", ("::1", 80)),
        ("h:", ("h", 0)),
        ("h:99999", ("h", 0)),
        ("h:x", ("h", 0)),
        ("h:²", ("h", 0)),
        ("", ("", 0)),
        (" h ", ("h", 0)),
    ],
)
def test_authority(value: str, expected: tuple[str, int]) -> None:
    assert authority_of(value) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("a=b&Signature=x&c", "a=b&Signature=REDACTED&c"),
        ("AWSAccessKeyId=x&sig=y", "AWSAccessKeyId=REDACTED&sig=REDACTED"),
        ("X-Goog-Signature=%41", "X-Goog-Signature=REDACTED"),
        ("mysig=x&sign=y&SIG=z", "mysig=x&sign=y&SIG=z"),
        ("sig=", "sig=REDACTED"),
        ("sig", "sig"),
    ],
)
def test_credentials_in_the_query_are_redacted(query: str, expected: str) -> None:
    assert redact(query) == expected


@pytest.mark.parametrize("hostile", ["\udcff\udc80", "é\u202e", "a\x00b", "x" * 256, "%zz", "?"])
def test_hostile_bytes_become_a_span(hostile: str) -> None:
    for kind in ("server", "client"):
        found = decoded(kind=kind, target=f"/{hostile}", host=hostile, method=hostile[:16])
        known = attributes(found)
        assert known["http.request.method"] == "_OTHER"
        assert len(known) >= 8, "no attribute was left out by the encoder"
        found = decoded(kind=kind, target=hostile, tracestate=hostile)
        assert found.name == "GET"


def test_one_resource_for_each_service() -> None:
    other = service("cart")
    request = sent((record(), SHOP), (record(), other), (record(), SHOP))
    counts = [len(found.scope_spans[0].spans) for found in request.resource_spans]
    names = [
        next(a.value.string_value for a in found.resource.attributes if a.key == "service.name")
        for found in request.resource_spans
    ]
    assert dict(zip(names, counts, strict=True)) == {"shop": 2, "cart": 1}


def test_what_was_seen_inside_tls_is_https() -> None:
    server = attributes(decoded(tls=True, host="shop.example"))
    assert (server["url.scheme"], server["server.port"]) == ("https", 443)
    client = attributes(decoded(kind="client", tls=True, host="shop.example"))
    assert client["url.full"] == "https://shop.example/cart/7?user=1"


def test_a_context_that_came_beside_the_request_has_a_remote_parent() -> None:
    assert decoded(evidence="packet").flags & 0x300 == 0x300  # known, and remote


# --- gRPC -------------------------------------------------------------------------------------

CALL: dict[str, Any] = {
    "grpc": True,
    "method": "",
    "target": "/shop.v1.Cart/Add",
    "target_length": 17,
    "host": "",
    "http_version": "2",
    "status": 0,
}


def test_server_span_of_grpc() -> None:
    found = decoded(**CALL)
    assert (found.name, found.kind) == ("shop.v1.Cart/Add", Span.SPAN_KIND_SERVER)
    assert found.status.code == Status.STATUS_CODE_UNSET
    assert attributes(found) == {
        "rpc.system": "grpc",
        "rpc.service": "shop.v1.Cart",
        "rpc.method": "Add",
        "rpc.grpc.status_code": 0,
        "server.address": "10.0.0.1",
        "server.port": 8080,
        "client.address": "10.0.0.2",
        "throughline.parent.evidence": "header",
    }


def test_client_span_of_grpc() -> None:
    changes = {"kind": "client", "evidence": "context", "host": "cart.internal:50051", "status": 14}
    found = decoded(**CALL | changes)
    assert (found.name, found.kind) == ("shop.v1.Cart/Add", Span.SPAN_KIND_CLIENT)
    assert found.status.code == Status.STATUS_CODE_ERROR
    assert attributes(found) == {
        "rpc.system": "grpc",
        "rpc.service": "shop.v1.Cart",
        "rpc.method": "Add",
        "rpc.grpc.status_code": 14,
        "server.address": "cart.internal",
        "server.port": 50051,
        "network.peer.address": "10.0.0.2",
        "network.peer.port": 40001,
        "throughline.parent.evidence": "context",
    }


@pytest.mark.parametrize("status", range(17))
def test_which_codes_of_grpc_are_errors(status: int) -> None:
    server = decoded(**CALL | {"status": status}).status.code
    client = decoded(**CALL | {"status": status, "kind": "client"}).status.code
    assert (server == Status.STATUS_CODE_ERROR) == (status in (2, 4, 12, 13, 14, 15))
    assert (client == Status.STATUS_CODE_ERROR) == (status != 0)


@pytest.mark.parametrize(
    ("target", "name", "service", "method"),
    [
        ("/Add", "Add", None, "Add"),
        ("", "grpc", None, ""),
        ("/a/b/c", "a/b/c", "a/b", "c"),
        ("/caf\xe9/\udcff", "caf\xe9/\ufffd", "caf\xe9", "\ufffd"),
    ],
)
def test_targets_of_grpc(target: str, name: str, service: str | None, method: str) -> None:
    found = decoded(**CALL | {"target": target})
    known = attributes(found)
    assert (found.name, known.get("rpc.service"), known["rpc.method"]) == (name, service, method)
