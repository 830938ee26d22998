"""Exchanges that an LRU map evicts before they end are counted, and leave no entry."""

from __future__ import annotations

import os

import pytest

from tests.fixtures.go import toolchains
from tests.fixtures.go.hops import Hops
from tests.fixtures.kernel_objects import make_all_give_way
from tests.fixtures.traced import Traced
from tests.fixtures.waiting import poll
from throughline.bpf import libbpf, maps

REQUESTS = 6400
BUILDS = [("https/1.1", "1.22"), ("https/2", toolchains.NEWEST), ("grpc tls", toolchains.NEWEST)]


def requests_left(traced: Traced) -> int:
    table = libbpf.get_pinned(next(traced.bpffs.glob("abi*/tl_requests")))
    try:
        return sum(1 for _ in maps.keys(table, 8))
    finally:
        os.close(table)


@pytest.mark.parametrize(("protocol", "version"), BUILDS, ids=str)
def test_what_gives_way_is_counted_and_its_requests_end(protocol: str, version: str) -> None:
    with Traced() as traced:
        hops = Hops(traced, protocol, version=version, ids=100_000)
        plan = "unary/unary/answer" if hops.protocol.grpc else "context/context/answer"
        hops.load(plan, requests=64)
        counters = traced.counters()
        assert counters["go_begun"] == counters["go_ended"] > 0
        assert "go_gave_way" not in counters
        assert traced.agent is not None
        agent, gone = traced.agent.pid, list[int]()
        with hops.sending(plan, requests=REQUESTS) as result:
            poll(
                lambda: gone.append(make_all_give_way(agent, "tl_go_exchanges")),
                enough=lambda _: sum(gone) >= 23,
                seconds=30,
                every=0,
            )
        assert (result["ok"], result["failed"]) == (REQUESTS, 0), result
        counters = traced.counters()
        left = requests_left(traced)
    lost = counters["go_begun"] - counters["go_ended"]
    assert 0 < counters["go_gave_way"] <= lost <= sum(gone)
    assert left == 0
