"""Many requests, 64 at a time, over each protocol: every parent is looked at."""

from __future__ import annotations

import pytest

from tests.golang import toolchains
from tests.golang.build import RACE, STRIPPED
from tests.golang.hops import Hops
from tests.kernel.traced import Traced

pytestmark = pytest.mark.timeout(1800)

REQUESTS, RACED = 10_000, 2_000
PROTOCOLS = ["http/1.1", "https/1.1", "https/2", "x/net http/2", "grpc", "grpc tls"]
# what of a request's calls carries the context to the next service, of which docs/go.md tells
CARRIED = {"http/1.1", "https/1.1"}


def judge(protocol: str, *, version: str, flags: tuple[str, ...], requests: int) -> None:
    plans = ["unary/watch/answer"] if protocol.startswith("grpc") else ["context/get/answer"]
    with Traced({"propagation": {"peers": ["127.0.0.0/8", "::1/128"]}}) as traced:
        hops = Hops(traced, protocol, version=version, flags=flags, ids=100_000)
        for plan in [*plans, "fan-2-1/answer"]:
            hops.learn(plan)
            found = hops.load(plan, requests=requests, seconds=800)
            assert (found.result["ok"], found.result["failed"]) == (requests, 0), found.result
            assert len(found.spans) == found.expected
            assert found.wrong == 0
            assert set(found.calls) == {"right"}
            assert set(found.hops) == {"right" if protocol in CARRIED else "none"}
        print(traced.counters())


@pytest.mark.parametrize("version", ["1.22", toolchains.NEWEST])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_parent_is_right(protocol: str, version: str) -> None:
    judge(protocol, version=version, flags=STRIPPED, requests=REQUESTS)


@pytest.mark.parametrize("protocol", ["http/1.1", "https/2", "grpc tls"])
def test_built_with_the_race_detector(protocol: str) -> None:
    judge(protocol, version=toolchains.NEWEST, flags=RACE, requests=RACED)
