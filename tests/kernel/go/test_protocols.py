"""Every protocol, old and new releases of Go and of modules: parents are right, nothing fails."""

from __future__ import annotations

import pytest

from tests.fixtures.go import toolchains
from tests.fixtures.go.build import PIE, STRIPPED, TRIMMED
from tests.fixtures.go.hops import PROTOCOLS, REQUESTS, Hops
from tests.fixtures.traced import Traced

# protocol, release of Go, flags, set of modules ("" is the newest)
BUILDS = [
    ("http/1.1", "1.19", (), ""),
    ("https/1.1", "1.22", STRIPPED, ""),
    ("https/2", toolchains.NEWEST, PIE + TRIMMED, ""),
    ("x/net http/2", "1.22", (), "0.33"),
    ("x/net https/2", toolchains.NEWEST, STRIPPED, ""),
    ("gin http/1.1", toolchains.NEWEST, STRIPPED, ""),
    ("gin https/2", toolchains.NEWEST, STRIPPED, ""),
    ("grpc", "1.19", STRIPPED, "1.50"),
    ("grpc tls", toolchains.NEWEST, (), ""),
]


@pytest.mark.parametrize(("protocol", "version", "flags", "modules"), BUILDS, ids=str)
def test_calls_are_of_their_request(
    protocol: str, version: str, flags: tuple[str, ...], modules: str
) -> None:
    plans = ["context/context/answer", "fan-2-2/answer", "own/answer"]
    if PROTOCOLS[protocol].grpc:
        plans = ["unary/unary/answer", "watch/collect/answer", "talk/answer", "fan-2-2/answer"]
    with Traced({"propagation": {"peers": ["127.0.0.0/8", "::1/128"]}}) as traced:
        hops = Hops(traced, protocol, version=version, flags=flags, modules=modules, ids=100_000)
        for plan in plans:
            found = hops.load(plan)
            assert (found.result["ok"], found.result["failed"]) == (REQUESTS, 0), found.result
            assert len(found.spans) == found.expected
            assert found.wrong == 0
            own = plan.startswith("own")
            assert set(found.calls) == {"own" if own else "right"}
            # what is written beside one request cannot be told from the next in HTTP/2
            alone = "http/1" in protocol or "https/1" in protocol
            assert set(found.hops) == {"own" if own else "right" if alone else "none"}
