"""The judge of the Go tests finds every mistake in spans that are made for that."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from tests.fixtures.go.judge import Found, judge, own
from tests.fixtures.spans import Span

NAMES = ("front", "back")


def _span(service: str, kind: str, number: int, span_id: str, parent: str = "") -> Span:
    return Span(
        trace_id=f"trace{number}",
        span_id=f"{span_id}{number}",
        parent_span_id=parent and f"{parent}{number}",
        name="GET",
        kind=kind,
        start_ns=0,
        end_ns=1,
        error=False,
        attributes={"url.path": f"/context/answer/{number}"},
        resource={"service.name": service},
    )


def _request(number: int) -> list[Span]:
    return [
        _span("front", "SERVER", number, "f"),
        _span("front", "CLIENT", number, "c", "f"),
        _span("back", "SERVER", number, "b", "c"),
    ]


def _judge(*spans: Span, header: str = "") -> Found:
    """The answers of two requests, of which the first has a header at the far side."""
    answers = [
        {"id": str(number), "traceparents": None, "upstream": [{"id": str(number), **seen}]}
        for number, seen in enumerate([{"traceparents": [header] if header else None}] * 2)
    ]
    return judge({}, spans=spans, expected=6, answers=answers[:1], names=NAMES)


def test_all_right() -> None:
    found = _judge(*_request(0), *_request(1), header="00-trace0-c0-01")
    assert (found.calls, found.hops) == (Counter(right=2), Counter(right=2))
    assert found.wire == Counter(right=1)
    assert found.wrong == 0


def test_the_call_of_another_request() -> None:
    server, call, far = _request(0)
    stolen = replace(call, trace_id="trace1", parent_span_id="f1")
    found = _judge(server, stolen, replace(far, trace_id="trace1"), *_request(1))
    assert found.calls == Counter(right=1, wrong=1)


def test_two_requests_with_exchanged_parents() -> None:
    (first, call, far), (second, other_call, other_far) = _request(0), _request(1)
    found = _judge(
        *(first, replace(call, trace_id="trace1", parent_span_id="f1")),
        *(second, replace(other_call, trace_id="trace0", parent_span_id="f0")),
        *(replace(far, trace_id="trace1"), replace(other_far, trace_id="trace0")),
    )
    assert found.calls == Counter(wrong=2)


def test_the_hop_from_another_request() -> None:
    server, call, far = _request(0)
    found = _judge(server, call, replace(far, trace_id="trace1", parent_span_id="c1"), *_request(1))
    assert found.hops == Counter(right=1, wrong=1)


def test_a_parent_that_nobody_sent() -> None:
    server, call, far = _request(0)
    far = replace(far, parent_span_id="unknown")
    found = _judge(server, call, far, *_request(1))
    assert (found.hops, found.wrong) == (Counter(right=1, unseen=1), 1)
    lost = _judge(server, call, far)  # its parent may be among those that are missing
    assert (lost.hops, lost.wrong) == (Counter(unseen=1), 0)


def test_no_parent() -> None:
    server, call, far = _request(0)
    found = _judge(server, replace(call, parent_span_id=""), replace(far, parent_span_id=""))
    assert (found.calls, found.hops, found.wrong) == (Counter(none=1), Counter(none=1), 0)


def test_the_hop_of_a_proxy_that_passed_the_header_on() -> None:
    server, call, far = _request(0)
    assert _judge(server, call, replace(far, parent_span_id="f0")).hops == Counter(skipped=1)


def test_a_header_of_another_request() -> None:
    found = _judge(*_request(0), *_request(1), header="00-trace1-c1-01")
    assert (found.wire, found.wrong) == (Counter(wrong=1), 1)


def test_a_traceparent_of_the_application() -> None:
    trace, parent = own(0)
    server, call, far = _request(0)
    found = _judge(
        server,
        replace(call, trace_id=trace, parent_span_id=parent),
        replace(far, trace_id=trace, parent_span_id=parent),
        header=f"00-{trace}-{parent}-01",
    )
    assert (found.calls, found.hops, found.wire) == (Counter(own=1),) * 3
