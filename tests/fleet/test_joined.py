"""The demo's verdict on right traces, and on traces that are broken in one place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fixtures.spans import Span, Value
from tests.fleet.joined import (
    CHAIN,
    FRONT,
    SECURE,
    SHOP,
    SHOP_WITHOUT_UNIX,
    UNIX,
    Hops,
    Request,
    check,
    complete,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT = "00f067aa0ba902b7"


def chain(
    *, client: bool, secure: bool = True, traces: tuple[Hops, ...] = (CHAIN,)
) -> tuple[Request, list[Span]]:
    """A request, with or without the client's own context, and its spans."""
    spans: list[Span] = []
    parent = CLIENT if client else ""
    trace = TRACE
    for number, hop in enumerate(hop for hops in traces for hop in hops):
        service, kind = hop
        if number == len(traces[0]):
            parent, trace = "", "1" * 32
        scheme = "https" if secure and hop in SECURE else "http"
        came = "unix" if hop in UNIX else "packet" if scheme == "https" else "header"
        attributes: dict[str, Value] = (
            {"url.path": "/cart/7", "url.scheme": scheme, "throughline.parent.evidence": came}
            if kind == "SERVER"
            else {"url.full": f"{scheme}://10.77.0.12:8001/cart/7"}
        )
        span = Span(
            trace_id=trace,
            span_id=f"{number + 1:016x}",
            parent_span_id=parent,
            name="GET",
            kind=kind,
            start_ns=number,
            end_ns=100 - number,
            error=False,
            attributes=attributes,
            resource={"service.name": service},
        )
        spans.append(span)
        passed_on = client and service in FRONT and kind == "CLIENT"
        parent = CLIENT if passed_on else span.span_id
    received = {"traceparent": [f"00-{trace}-{spans[-1].parent_span_id}-01"]}
    if client:
        if not secure and len(traces) == 1:
            received["tracestate"] = ["demo=1"]
        return Request("7", f"00-{TRACE}-{CLIENT}-01", "demo=1", received), spans
    return Request("7", "", "", received), spans


@pytest.mark.parametrize("traces", [(CHAIN,), SHOP, SHOP_WITHOUT_UNIX])
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("client", [False, True])
def test_a_joined_request_has_no_problem(
    client: bool, secure: bool, traces: tuple[Hops, ...]
) -> None:
    request, spans = chain(client=client, secure=secure, traces=traces)
    assert complete([request], spans, traces=traces)
    assert check([request], reversed(spans), traces=traces, secure=secure) == []
    assert check([request], spans, traces=traces, secure=not secure) != []


def test_a_kernel_that_shows_unix_sockets_has_one_trace() -> None:
    request, spans = chain(client=False, traces=SHOP_WITHOUT_UNIX)
    assert not complete([request], spans, traces=SHOP)
    assert check([request], spans, traces=SHOP) == [
        f"request 7: no span of {' '.join(hop)}" for hop in UNIX
    ]


@pytest.mark.parametrize("hop", range(len(CHAIN)))
@pytest.mark.parametrize("client", [False, True])
def test_every_broken_hop_is_found(hop: int, client: bool) -> None:
    request, spans = chain(client=client)
    name = " ".join(CHAIN[hop])
    missing = [span for index, span in enumerate(spans) if index != hop]
    assert not complete([request], missing)
    assert check([request], missing) == [f"request 7: no span of {name}"]
    assert check([request], [*spans, spans[hop]]) == [f"request 7: 2 spans of {name}"]
    for broken in (
        replace(spans[hop], trace_id="1" * 32),
        replace(spans[hop], parent_span_id="2" * 16),
    ):
        assert check([request], [*missing, broken]) != []


def test_what_arrived_is_compared_with_the_spans() -> None:
    request, spans = chain(client=True, secure=False)
    doubled = [*request.received["traceparent"], *request.received["traceparent"]]
    assert check([replace(request, received={"traceparent": doubled})], spans, secure=False) != []
    stateless = {"traceparent": request.received["traceparent"]}
    assert check([replace(request, received=stateless)], spans, secure=False) == [
        "request 7: tracestate at the last hop is '', not 'demo=1'"
    ]


def test_the_way_of_the_context_is_compared() -> None:
    request, spans = chain(client=False)
    (place,) = (number for number, hop in enumerate(CHAIN) if hop == SECURE[1])
    attributes = {**spans[place].attributes, "throughline.parent.evidence": "header"}
    spans[place] = replace(spans[place], attributes=attributes)
    assert check([request], spans) == [
        "request 7: the parent of shop-stock SERVER is known by header, not by packet"
    ]
