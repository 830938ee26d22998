"""Whether parents are right, by the ids that requests carry."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.fleet.spans import Span

Answer = Mapping[str, Any]  # services/chain/answer.go, of the service that the load called


@dataclass(frozen=True, slots=True)
class Found:
    """What the spans and the services' own words say of one load.

    `calls`: the parents of client spans, right is the server span of the request that called.
    `hops`: the parents of server spans behind the first, right is the client span of the caller.
    `wire`: the traces that the services saw in headers, right is that of the request's first span.
    *none* has no parent or no header or, on the wire, a trace that no request has; *wrong* is of
    another request; a *skipped* hop's parent is of the same request, but not its caller's span, as
    behind a proxy that passes the header on; an *unseen* parent is a span that did not come; *own*
    is the traceparent that the application set.
    """

    result: Mapping[str, Any]  # of the load: ok, failed, latencies
    spans: Sequence[Span]
    expected: int  # how many spans there should be
    calls: Counter[str]
    hops: Counter[str]
    wire: Counter[str]

    @property
    def requests(self) -> int:
        """How many were sent."""
        return int(self.result["ok"] + self.result["failed"])

    @property
    def wrong(self) -> int:
        """A parent that nobody has seen is wrong too, unless spans are missing."""
        verdicts = ["wrong", "unseen"] if len(self.spans) == self.expected else ["wrong"]
        counts = (self.calls, self.hops, self.wire)
        return sum(count[verdict] for count in counts for verdict in verdicts)

    def __str__(self) -> str:
        counts = " ".join(f"{n}={dict(getattr(self, n))}" for n in ("calls", "hops", "wire"))
        return (
            f"{self.result['ok']} ok, {self.result['failed']} failed,"
            f" p99 {self.result['p99_ms']} ms, {len(self.spans)} of {self.expected} spans, {counts}"
        )


def judge(
    result: Mapping[str, Any],
    *,
    spans: Sequence[Span],
    expected: int,
    answers: Iterable[Answer],
    names: Sequence[str],
) -> Found:
    """Judges the spans of a load and its answers; `names` are the services in their order."""
    calls, hops = _judge_spans(spans, names)
    first = {
        id_of(span): span.trace_id
        for span in spans
        if (span.service, span.kind) == (names[0], "SERVER")
    }
    traces = set(first.values())
    wire = Counter(
        _verdict_on_header(answer, first, traces)
        for answer_of_first in answers
        for answer in _behind(answer_of_first)
    )
    return Found(result, spans, expected, calls, hops, wire)


def _judge_spans(spans: Sequence[Span], names: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    by_id = {span.span_id: span for span in spans}
    calls: Counter[str] = Counter()
    hops: Counter[str] = Counter()
    for span in spans:
        parent = by_id.get(span.parent_span_id)
        if span.kind == "CLIENT":
            calls[_verdict(span, parent, (span.service, "SERVER"))] += 1
        elif span.service != names[0]:
            caller = names[names.index(span.service) - 1]
            hops[_verdict(span, parent, (caller, "CLIENT"))] += 1
    return calls, hops


def _verdict(span: Span, parent: Span | None, wanted: tuple[str, str]) -> str:
    if not span.parent_span_id:
        return "none"
    if parent is None and (span.trace_id, span.parent_span_id) == own(id_of(span)):
        return "own"
    if parent is None:
        return "unseen"
    if id_of(parent) != id_of(span) or parent.trace_id != span.trace_id:
        return "wrong"
    return "right" if (parent.service, parent.kind) == wanted else "skipped"


def _verdict_on_header(answer: Answer, first: Mapping[int, str], traces: set[str]) -> str:
    """`first` has the trace of each request's first span, `traces` are all of them."""
    number = int(answer["id"])
    seen = [header.split("-")[1] for header in answer["traceparents"] or []]
    if len(seen) > 1:
        return "many"
    if not seen:
        return "none"
    if seen[0] == first.get(number):
        return "right"
    if seen[0] == own(number)[0]:
        return "own"
    return "wrong" if seen[0] in traces else "none"


def _behind(answer: Answer) -> Iterable[Answer]:
    """The answers of the services behind the first."""
    for upstream in answer.get("upstream", ()):
        yield upstream
        yield from _behind(upstream)


def own(number: int) -> tuple[str, str]:
    """Trace id and span id of the traceparent that an application sets for an id."""
    return f"0af7651916cd43dd{number + 1:016x}", f"{number + 1:016x}"


def id_of(span: Span) -> int:
    """The request's id, -1 where the span has none."""
    end = re.search(r"[./](\d+)$", span.path or str(span.attributes.get("rpc.method", span.name)))
    return int(end[1]) if end else -1
