"""The demo's verdict, on traces that are right and on traces that are broken in one place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fleet.joined import CHAIN, Request, check, complete
from tests.fleet.spans import Span

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT = "00f067aa0ba902b7"


def chain(*, client: bool) -> tuple[Request, list[Span]]:
    """A request, with or without the client's own context, and its seven spans."""
    spans = []
    parent = CLIENT if client else ""
    for number, (service, kind) in enumerate(CHAIN):
        span = Span(
            trace_id=TRACE,
            span_id=f"{number + 1:016x}",
            parent_span_id=parent,
            name="GET",
            kind=kind,
            start_ns=number,
            end_ns=100 - number,
            error=False,
            attributes={"url.path": "/cart/7"}
            if kind == "SERVER"
            else {"url.full": "http://10.77.0.12:8001/cart/7"},
            resource={"service.name": service},
        )
        spans.append(span)
        parent = CLIENT if client and number == 1 else span.span_id
    received = {"traceparent": [f"00-{TRACE}-{spans[-1].parent_span_id}-01"]}
    if client:
        received["tracestate"] = ["demo=1"]
        return Request("7", f"00-{TRACE}-{CLIENT}-01", "demo=1", received), spans
    return Request("7", "", "", received), spans


@pytest.mark.parametrize("client", [False, True])
def test_a_joined_request_has_no_problem(client: bool) -> None:
    request, spans = chain(client=client)
    assert complete([request], spans)
    assert check([request], reversed(spans)) == []


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
    request, spans = chain(client=True)
    doubled = [*request.received["traceparent"], *request.received["traceparent"]]
    assert check([replace(request, received={"traceparent": doubled})], spans) != []
    stateless = {"traceparent": request.received["traceparent"]}
    assert check([replace(request, received=stateless)], spans) == [
        "request 7: tracestate at the last hop is '', not 'demo=1'"
    ]
