"""Chains of Go services: each call has its own request for a parent, or none, and nothing fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fixtures.go.build import RACE, STRIPPED
from tests.fixtures.go.hops import REQUESTS, Hops
from tests.fixtures.go.judge import Found
from tests.fixtures.traced import Traced


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with Traced() as found:
        yield found


@pytest.fixture(scope="module")
def hops(traced: Traced) -> Hops:
    made = Hops(traced, "http/1.1", version="1.22", flags=STRIPPED, ids=100_000)
    made.learn("bare-fan-1-5/bare-lazy/answer", "bare-pool/bare-fan-2-2/answer")
    return made


def assert_whole(found: Found) -> None:
    assert (found.result["ok"], found.result["failed"]) == (REQUESTS, 0), found.result
    assert len(found.spans) == found.expected
    assert found.wrong == 0


@pytest.mark.parametrize(
    ("plan", "calls"),
    [
        ("context/context/answer", {"right"}),
        ("get/get/answer", {"right"}),
        ("fan-2-2/context/answer", {"right"}),
        # of a worker that was given the request's context
        ("pool/pool/answer", {"right"}),
        ("lazy/lazy/answer", {"right"}),
        # of one that was not nothing is known: no context of another request leaks to it
        ("bare-pool/answer", {"none"}),
        ("bare-lazy/answer", {"none"}),
        ("timer/context/answer", {"right"}),
        ("stream/stream/answer", {"right"}),
        ("proxy/context/answer", {"right"}),
    ],
)
def test_a_call_is_of_the_request_of_its_goroutine(hops: Hops, plan: str, calls: set[str]) -> None:
    found = hops.load(plan)
    assert_whole(found)
    assert "many" not in found.wire
    assert set(found.calls) == calls
    assert set(found.hops) == {"right"}  # plaintext: the header has arrived each time


@pytest.mark.parametrize("plan", ["bare-fan-1-5/get/answer", "bare-fan-2-2/answer"])
def test_goroutines_inherit_what_they_were_started_for(hops: Hops, plan: str) -> None:
    """One in 16 cannot be told when it begins, and not always later (docs/operator/go.md)."""
    found = hops.load(plan)
    assert_whole(found)
    assert found.calls["right"] >= 0.9 * found.calls.total()
    assert set(found.calls) <= {"right", "none"}


def test_a_call_after_the_answer_is_of_nobody(hops: Hops) -> None:
    found = hops.load("after/answer")
    assert_whole(found)
    assert set(found.calls) == {"none"}


def test_the_traceparent_of_an_application_wins(hops: Hops) -> None:
    found = hops.load("own/answer")
    assert_whole(found)
    assert found.calls == found.hops == found.wire == {"own": REQUESTS}


def test_built_with_the_race_detector(traced: Traced) -> None:
    raced = Hops(traced, "http/1.1", flags=RACE, names=("race-front", "race-back"))
    assert_whole(raced.load("fan-2-1/answer"))
