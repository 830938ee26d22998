"""Group `go_write`: requests over TLS, HTTP/2 and gRPC carry the context, and nothing else changes.

Skipped where the kernel refuses it; `test_write_in_vm.py` runs this in a VM.
"""

from __future__ import annotations

import os

import pytest

from tests.fixtures.go.hops import PROTOCOLS, Hops
from tests.fixtures.go.writers import BUILDS
from tests.fixtures.traced import Traced

REQUESTS = int(os.environ.get("THROUGHLINE_TEST_REQUESTS", "256"))


def plans_of(protocol: str) -> tuple[str, ...]:
    if PROTOCOLS[protocol].grpc:
        return "unary/unary/answer", "watch/collect/answer", "talk/answer", "fan-2-2/answer"
    return "context/context/answer", "fan-2-2/answer", "stream/stream/answer", "pool/answer"


@pytest.mark.parametrize(("protocol", "version", "flags", "modules"), BUILDS, ids=str)
def test_every_hop_is_in_the_trace(
    writing: Traced, protocol: str, version: str, flags: tuple[str, ...], modules: str
) -> None:
    first, *plans = plans_of(protocol)[0], *plans_of(protocol)
    ids = (1 + len(plans)) * REQUESTS  # each is a method of gRPC
    hops = Hops(writing, protocol, version=version, flags=flags, modules=modules, ids=ids)
    # where the buffers of gRPC are shared a long header finds none: docs/operator/go.md
    shared = PROTOCOLS[protocol].grpc and not modules
    warm = hops.load(first, requests=REQUESTS)  # with the first call of each connection
    calls, none = warm.calls.total(), warm.hops["none"]
    for plan in plans:
        found = hops.load(plan, requests=REQUESTS)
        assert (found.result["ok"], found.result["failed"]) == (REQUESTS, 0), found.result
        assert len(found.spans) == found.expected
        assert found.wrong == 0
        assert set(found.calls) == {"right"}
        if not shared:
            assert set(found.hops) == set(found.wire) == {"right"}
        calls += found.calls.total()
        none += found.hops["none"]
    counters = writing.counters()
    left = {name: total for name, total in counters.items() if name.startswith("go_write_")}
    reasons = {"go_write_no_room", "go_write_failed"} if PROTOCOLS[protocol].grpc else set()
    assert left.keys() <= reasons
    assert sum(left.values()) == none
    assert none <= len(hops.names) - 1 + (calls // 50 if shared else 0)
    assert counters["go_written"] + none == calls
