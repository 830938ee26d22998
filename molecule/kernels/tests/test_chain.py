"""Requests through nginx and three Python services without any code for tracing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from machine import Machine, Sent
from tests.fleet import joined

pytestmark = pytest.mark.usefixtures("accepted")

REQUESTS = 23
SPANS = REQUESTS * len(joined.CHAIN)
BODY = 4 * 1024 * 1024
LOCAL: joined.Hops = (("shop-web", "SERVER"), ("shop-web", "CLIENT"), ("shop-prices", "SERVER"))


def check_spans(sent: Sent) -> None:
    """Exactly one span for each hop of each request, and no other span."""
    assert len(sent.requests) == REQUESTS
    hops = Counter((span.service, span.kind) for span in sent.spans)
    assert hops == dict.fromkeys(joined.CHAIN, REQUESTS)
    assert [span.name for span in sent.others] == []
    assert sent.exported == SPANS


def check_traces(machine: Machine, sent: Sent) -> None:
    """One trace for each request where headers can be written; where not, they arrive as sent."""
    check_spans(sent)
    if machine.platform.groups["headers"] == "on":
        assert joined.check(sent.requests, sent.spans, secure=sent.secure) == []
    else:
        assert [one.cart for one in sent.requests if "traceparent" in one.received] == []


@pytest.mark.proves("observe")
def test_every_hop_gives_one_span(machine: Machine, seen: dict[str, Any]) -> None:
    sent = machine.send("spans", spans=SPANS)
    seen.update(requests=len(sent.requests), spans=len(sent.spans), exported=sent.exported)
    check_spans(sent)


@pytest.mark.proves("headers", "packets", "tls")
def test_every_request_is_one_trace(machine: Machine, seen: dict[str, Any]) -> None:
    """Or, where `headers` is off, no request is altered."""
    sent = machine.send("joined", spans=SPANS)
    seen.update(spans=len(sent.spans), traces=len({span.trace_id for span in sent.spans}))
    seen["evidence"] = Counter(span.evidence for span in sent.spans)
    check_traces(machine, sent)


@pytest.mark.proves("headers")
def test_bytes_arrive_as_they_were_sent(machine: Machine, seen: dict[str, Any]) -> None:
    echo = machine.echo(BODY)
    seen.update(echo)
    assert echo["status"] == 200
    assert echo["bytes"] == BODY
    assert echo["arrived"] == echo["sent"]
    assert echo["back"] == echo["sent"]
    headers = "1" if machine.platform.groups["headers"] == "on" else "0"
    assert echo["traceparents"] == headers, "the body was compared, but not beside such a header"


@pytest.mark.proves("observe")
def test_a_unix_socket_is_a_hop(machine: Machine, seen: dict[str, Any]) -> None:
    """Where the kernel shows it; else nginx's own span is there."""
    hops = LOCAL if machine.platform.shows_unix else LOCAL[:1]
    sent = machine.send("local", spans=REQUESTS * len(hops), through="local")
    found = Counter((span.service, span.kind) for span in sent.spans)
    seen["spans"] = {f"{service} {kind}": count for (service, kind), count in found.items()}
    assert found == dict.fromkeys(hops, REQUESTS)
    of = {(joined.cart(span), span.service, span.kind): span for span in sent.spans}
    for request in sent.requests:
        assert "traceparent" not in request.received
        chain = [of[(request.cart, *hop)] for hop in hops]
        assert [span.parent_span_id for span in chain] == ["", *(s.span_id for s in chain[:-1])]
        assert len({span.trace_id for span in chain}) == 1
    if machine.platform.shows_unix:
        assert {s.evidence for s in sent.spans if s.service == "shop-prices"} == {"unix"}
