"""The bench of parents says wrong where a parent is wrong, and none where nothing is known."""

from __future__ import annotations

import pytest

from tests.fixtures.spans import Span
from tests.parents.app import Behaviour
from tests.parents.judge import Result, judge

TARGET = "/call?id=7"


def span(
    service: str,
    kind: str,
    target: str,
    *,
    trace: str = "t7",
    own: str = "s7",
    parent: str = "",
    evidence: str = "none",
) -> Span:
    path, _, query = target.partition("?")
    attributes = {"url.path": path, "url.query": query, "throughline.parent.evidence": evidence}
    if kind == "CLIENT":
        attributes = {
            "url.full": f"http://127.0.0.1{target}",
            "throughline.parent.evidence": evidence,
        }
    return Span(trace, own, parent, "GET", kind, 1, 2, False, attributes, {"service.name": service})


SERVED = span("app", "SERVER", "/at-once?id=7")
OTHER = span("app", "SERVER", "/at-once?id=8", trace="t8", own="s8")


def judged(
    *spans: Span,
    taken: tuple[tuple[str, str], ...] = ((TARGET, ""),),
    services: tuple[str, ...] = ("app",),
    behaviour: Behaviour = Behaviour.AT_ONCE,
) -> Result:
    result = Result(concurrent=1, requests=1)
    judge(result, taken, spans, services=services, behaviour=behaviour)
    return result


def verdict(result: Result) -> str:
    (found,) = (name for name in ("right", "wrong", "none") if getattr(result, name))
    return found


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (span("app", "CLIENT", TARGET, own="c", parent="s7"), "right"),
        (span("app", "CLIENT", TARGET, trace="t8", own="c", parent="s8"), "wrong"),
        (span("app", "CLIENT", TARGET, own="c", parent="unknown"), "wrong"),
        (span("app", "CLIENT", TARGET, trace="new", own="c"), "none"),
    ],
)
def test_the_parent_of_a_call_decides(call: Span, expected: str) -> None:
    assert verdict(judged(SERVED, OTHER, call)) == expected


def test_a_call_without_a_span_is_unseen() -> None:
    result = judged(SERVED)
    assert (verdict(result), result.unseen, result.no_header) == ("none", 1, 1)


def test_a_header_that_is_not_the_spans_is_wrong() -> None:
    call = span("app", "CLIENT", TARGET, own="c", parent="s7")
    assert verdict(judged(SERVED, call, taken=((TARGET, "00-t7-c-01"),))) == "right"
    for header in ("00-t8-c-01", "00-t7-other-01"):
        assert verdict(judged(SERVED, call, taken=((TARGET, header),))) == "wrong"


@pytest.mark.parametrize("target", ["/poll?id=7", TARGET])
def test_a_call_of_a_poller_or_after_the_answer_has_no_parent(target: str) -> None:
    behaviour = Behaviour.POLLER if "poll" in target else Behaviour.AFTER
    call = span("app", "CLIENT", target, own="c", parent="s7")
    root = span("app", "CLIENT", target, trace="new", own="c")
    taken = ((target, ""),)
    assert verdict(judged(SERVED, call, taken=taken, behaviour=behaviour)) == "wrong"
    assert verdict(judged(SERVED, root, taken=taken, behaviour=behaviour)) == "right"


def chain(*, between: str = "c1", of_first: str = "s1") -> list[Span]:
    """Two services; `between` is the parent in the second, `of_first` that of the first's call."""
    return [
        span("front", "SERVER", "/at-once?id=7", own="s1"),
        span("front", "CLIENT", "/at-once?id=7", own="c1", parent=of_first),
        span("front", "CLIENT", "/at-once?id=8", own="c8", parent="s8"),
        span("app", "SERVER", "/at-once?id=7", own="s2", parent=between),
        span("app", "CLIENT", TARGET, own="c2", parent="s2"),
    ]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        (chain(), "right"),
        (chain(between=""), "none"),
        (chain(between="c8"), "wrong"),
        (chain(of_first="c8"), "wrong"),
        (chain(of_first=""), "none"),
    ],
)
def test_each_hop_has_to_be_right(spans: list[Span], expected: str) -> None:
    assert verdict(judged(*spans, services=("front", "app"))) == expected


def test_each_call_is_judged_once() -> None:
    """Two workers poll with the same numbers."""
    taken = (("/poll?id=1", "00-a-1-01"), ("/poll?id=1", "00-b-2-01"))
    polls = [
        span("app", "CLIENT", "/poll?id=1", trace="b", own="2"),
        span("app", "CLIENT", "/poll?id=1", trace="a", own="1"),
    ]
    result = judged(*polls, taken=taken, behaviour=Behaviour.POLLER)
    assert (result.right, result.calls) == (2, 2)


def test_a_none_without_a_counter_is_a_problem() -> None:
    result = judged(SERVED, span("app", "CLIENT", TARGET, trace="new", own="c"))
    assert result.unexplained == 1
    result.reasons["root_no_context"] = 1
    assert result.unexplained == 0
