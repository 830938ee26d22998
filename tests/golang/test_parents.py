"""Chains of Go services of our own: no parent is wrong, no request fails, no byte is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.golang.build import RACE, STRIPPED
from tests.golang.hops import REQUESTS, Hops
from tests.golang.judge import Found
from tests.kernel.traced import Traced


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with Traced() as found:
        yield found


@pytest.fixture(scope="module")
def hops(traced: Traced) -> Hops:
    return Hops(traced, "http/1.1", version="1.22", flags=STRIPPED, ids=100_000)


def assert_whole(found: Found) -> None:
    assert (found.result["ok"], found.result["failed"]) == (REQUESTS, 0), found.result
    assert len(found.spans) == found.expected
    assert found.wrong == 0


@pytest.mark.parametrize(
    "plan",
    [
        "context/context/answer",
        "get/get/answer",
        "fan-2-2/context/answer",
        "fan-1-5/get/answer",
        "pool/pool/answer",
        "lazy/lazy/answer",
        "timer/context/answer",
        "after/answer",
        "stream/stream/answer",
        "proxy/context/answer",
    ],
)
def test_no_parent_is_wrong(hops: Hops, plan: str) -> None:
    found = hops.load(plan)
    assert_whole(found)
    assert "many" not in found.wire
    assert set(found.hops) == {"right"}  # plaintext: the header has arrived each time


def test_the_traceparent_of_an_application_wins(hops: Hops) -> None:
    found = hops.load("own/answer")
    assert_whole(found)
    assert found.calls == found.hops == found.wire == {"own": REQUESTS}


def test_built_with_the_race_detector(traced: Traced) -> None:
    raced = Hops(traced, "http/1.1", flags=RACE, names=("race-front", "race-back"))
    assert_whole(raced.load("fan-2-1/answer"))


# Today a call of a goroutine begins a trace. This fails as soon as group `go` gives it its parent:
# then take the mark away.
@pytest.mark.xfail(strict=True, reason="there is no group `go` yet")
def test_calls_have_their_goroutine_for_a_parent(hops: Hops) -> None:
    found = hops.load("fan-2-2/context/answer")
    assert set(found.calls) == {"right"}
