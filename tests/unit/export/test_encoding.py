"""The bytes of requests are those of the readable messages, and of OpenTelemetry's own encoder."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

from tests.fixtures import witness
from tests.fixtures.records import SHOP, START, batch, raw, record, service
from throughline.bpf import abi
from throughline.export import encoding, templates
from throughline.export.templates import Templates
from throughline.records.spanrecord import RawSpan, SpanRecord
from throughline.services.naming import Service
from throughline.telemetry import messages, spans
from throughline.telemetry.conventions import SCHEMA_URL

CHANGES: list[dict[str, Any]] = [
    {},
    {"kind": "client", "evidence": "thread"},
    {"parent_span_id": None, "evidence": "none"},
    {"tracestate": "a=1,b=2", "trace_flags": 3},
    {"status": 500},
    {"status": 0, "end": "closed"},
    {"kind": "client", "status": 404},
    {"target": "/" + 255 * "x", "target_length": 301},
    {"target": "/\udce9\xff", "method": "BREW", "host": ""},
    {"target": "http://shop.example/cart?Signature=1", "end": "close_delimited"},
]


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry's API logs each `tracestate` that is not valid."""
    monkeypatch.setattr(logging.getLogger("opentelemetry.trace.span"), "disabled", True)


def readable(records: list[tuple[SpanRecord, Service]]) -> bytes:
    """A request of messages alone."""
    services = list(dict.fromkeys(service for _, service in records))
    request = ExportTraceServiceRequest(
        resource_spans=[
            ResourceSpans(
                resource=messages.resource(of),
                scope_spans=[
                    ScopeSpans(
                        scope=messages.SCOPE,
                        spans=[spans.message(one) for one, service in records if service is of],
                        schema_url=SCHEMA_URL,
                    )
                ],
                schema_url=SCHEMA_URL,
            )
            for of in services
        ]
    )
    encoded: bytes = request.SerializeToString()
    return encoded


def encoded(records: list[tuple[RawSpan, Service]], known: Templates) -> bytes:
    return encoding.request([encoding.encode(span, of, known) for span, of in records])


@pytest.mark.parametrize("changes", CHANGES)
def test_each_span_again_and_again(changes: dict[str, Any]) -> None:
    source = record(**changes)
    known = Templates()
    expected = witness.request([(source, SHOP)])
    assert readable([(source, SHOP)]) == expected
    for _ in range(2):
        assert encoded([(raw(source), SHOP)], known) == expected, "from its message"
    assert encoded([(raw(source), SHOP)], known) == expected, "from a template, if there is one"
    assert encoding.request([encoding.encode(source, SHOP, known)]) == expected, "from the spool"


def test_several_services() -> None:
    other = service("other")
    records = [
        (record(**changes), SHOP if number % 3 else other)
        for number, changes in enumerate(CHANGES * 2)
    ]
    sent = encoded([(raw(one), of) for one, of in records], Templates())
    assert sent == readable(records) == witness.request(records)
    assert encoding.request([]) == witness.request([]) == b""


# --- a wide mix -----------------------------------------------------------------------------------

METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "BREW", "get", "G\udcffT", "", "M" * 16)
HOSTS = (
    *("shop.example", "shop.example:8080", "www.example.com:443", "10.1.2.3:80", "a:0", "h:99999"),
    *("[2001:db8::1]", "[::1]:81", "[]:5", ":80", "", " h ", "caf\xe9", "\udcff\udcfe", "x" * 128),
    "é" * 64,
)
ADDRESSES = ("10.0.0.2", "192.168.7.9", "127.0.0.1", "2001:db8::7", "fe80::1", "::")
TARGETS = (
    *("/", "/cart/{n}", "/cart/{n}?user={n}", "/api/v1/items/{n}/parts?page={n}&size=10", "/p?"),
    *("/p??", "//x/{n}", "/a?b?c={n}", "/?sig={n}", "/x?a=1&Signature={n}#f", "/s?design={n}"),
    *("*", "", "h:443", "http://u:p@other:81/x?y={n}", "HTTPS://other/{n}", "/caf\xe9/{n}"),
    *("/\udcff\udc80{n}", "/%00\x00{n}", "/x" * 127, "/q?" + "v" * 253, "/{n}" + "y" * 250),
)
CALLS = ("/shop.v1.Cart/Add", "/shop.v1.Cart/Get{n}", "/Add", "", "/a/b/c", "/caf\xe9/\udcff", "//")
STATES = (
    *("", "", "", "", "a=1", "a=1,b=2", "a@b=x , c=d", "a=1,a=2", "A=1", "a=\udcff", "a=,b=1"),
    *(
        ",".join(f"k{n}=v" for n in range(33)),
        "v=" + "x" * 300,
        "v=" + "x" * 256,
        ", ,a=1,",
        "a==b",
    ),
)
EVIDENCE = ("none", "header", "connect", "restore", "thread", "packet", "goroutine", "context")
STATUSES = (0, 100, 200, 200, 200, 204, 302, 399, 400, 404, 499, 500, 503, 599, 999, 65535)


def mixed(pick: random.Random) -> SpanRecord:
    """A record of any kind. Common values come more than once, so that templates are used."""

    def some(values: tuple[Any, ...]) -> Any:
        common = values[:3]
        return pick.choice(common if pick.random() < 0.8 else values)

    grpc = pick.random() < 0.2
    target = some(CALLS if grpc else TARGETS).replace("{n}", str(pick.randrange(10**5)))
    data = target.encode("utf-8", "surrogateescape")
    length = len(data) if pick.random() < 0.98 else pick.randrange(257, 60_000)
    kept = data[: abi.Abi.TARGET_MAX].decode(
        "utf-8", "surrogateescape" if length <= abi.Abi.TARGET_MAX else "ignore"
    )
    root = pick.random() < 0.1
    start = START + pick.randrange(10**15)
    return record(
        kind=pick.choice(("server", "client")),
        trace_id=pick.randbytes(16),
        span_id=pick.randbytes(8),
        parent_span_id=None if root else pick.randbytes(8),
        trace_flags=pick.choice((0, 1, 3, 255)),
        evidence=some(EVIDENCE),
        end=some(("complete", "complete", "complete", "closed", "close_delimited")),
        start_unix_ns=start,
        end_unix_ns=start + pick.choice((0, 1, pick.randrange(10**12))),
        method="" if grpc else some(METHODS),
        target=kept,
        target_length=length,
        host=some(HOSTS),
        http_version="2" if grpc else some(("1.1", "1.1", "1.1", "1.0", "2")),
        status=pick.randrange(18) if grpc else some(STATUSES),
        local_address=some(ADDRESSES),
        local_port=some((8080, 443, 80, 0, 65535)),
        peer_address=some(ADDRESSES),
        peer_port=pick.choice((8080, 443, 80, pick.randrange(65536))),
        tracestate=some(STATES),
        tls=pick.random() < 0.3,
        grpc=grpc,
    )


@pytest.mark.usefixtures("quiet")
def test_20000_spans_of_all_kinds_byte_for_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ways give the same bytes: templates, readable messages, OpenTelemetry's own encoder."""
    pick = random.Random(13)
    services = [service(), service("ü", **{"host.id": "x" * 300, "empty": ""}), service("cart")]
    known = Templates()
    messages_made = 0
    really = spans.message

    def counted(of: SpanRecord) -> Any:
        nonlocal messages_made
        messages_made += 1
        return really(of)

    monkeypatch.setattr(spans, "message", counted)
    for _ in range(40):
        sources = [(raw(mixed(pick)), pick.choice(services)) for _ in range(500)]
        records = [(span.decode(), of) for span, of in sources]
        sent = encoded(sources, known)
        before = messages_made
        assert sent == readable(records)
        messages_made = before
        assert sent == witness.request(records)
        ExportTraceServiceRequest.FromString(sent)
    assert messages_made < 16_000, "templates have been used"


def test_what_differs_is_in_no_template() -> None:
    known = Templates()
    for number in range(1000):
        changes: dict[str, Any] = {
            "target": f"/cart/{number}?user={number}",
            "peer_address": f"10.0.{number >> 8}.{number & 255}",
            "peer_port": number,
            "start_unix_ns": START + number,
            "tracestate": f"a={number}",
        }
        encoded([(raw(record(**changes)), SHOP)], known)
        encoded([(raw(record(**changes, kind="client", evidence="thread")), SHOP)], known)
    assert len(known) == 2


@pytest.mark.parametrize("times", [1, 3])
def test_templates_are_bounded(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Strangers choose methods and hosts, and the methods of gRPC."""
    monkeypatch.setattr(templates, "MAX_TEMPLATES", 10)
    known = Templates()
    usual = record()
    for _ in range(2):
        encoded([(raw(usual), SHOP)], known)
    for number in range(100):
        for changes in (
            {"method": f"M{number}"},
            {"host": f"h{number}.example"},
            {"status": number},
            {"grpc": True, "target": f"/shop.v1.Cart/M{number}"},
        ):
            source = record(**changes)
            for _ in range(times):
                assert encoded([(raw(source), SHOP)], known) == readable([(source, SHOP)])
            assert len(known) <= 10 and len(known._met) <= 10
    if times == 1:
        assert len(known) == 1, "what came once has cost no template its place"


def test_a_record_without_a_message_raises() -> None:
    """An id of the wrong length, as a damaged file of the spool has it; times before 1970."""
    for changes in (
        {"trace_id": None},
        {"trace_id": b""},
        {"span_id": bytes(7)},
        {"status": 1 << 70},
    ):
        with pytest.raises((TypeError, ValueError)):
            encoding.encode(record(**changes), SHOP, Templates())
    known = Templates()
    ((span, _),) = batch(1)
    encoding.encode(span, SHOP, known)
    for offset in (-2 * START, 1 << 64):
        with pytest.raises(Exception, match=r".+"):
            encoding.encode(RawSpan(span.data, offset), SHOP, known)
    assert encoding.encode(RawSpan(span.data, -START), SHOP, known).span, "a zero is left out"


def test_a_resource_may_have_any_names() -> None:
    odd = Service("s", "", "", True, {"": "no name", "a\udcff": "b\udcff", "service.name": "s"})
    sent = encoding.request([encoding.encode(record(), odd, Templates())])
    (found,) = ExportTraceServiceRequest.FromString(sent).resource_spans
    assert {a.key: a.value.string_value for a in found.resource.attributes} == {
        "a\ufffd": "b\ufffd",
        "service.name": "s",
    }
