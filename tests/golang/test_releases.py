"""Every release of Go and every minor release of modules that the agent follows, under load.

A hundred programs are built on a new machine, which takes most of an hour.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.golang import releases, tested, toolchains
from tests.golang.build import STRIPPED, build
from tests.golang.hops import Hops
from tests.kernel.traced import Traced
from throughline.golang import analyse
from throughline.golang.wanted import GRPC, MODULES, X_NET

REQUESTS = 256
# golang.org/x/net before its first release is in no set: Debian's programs have it (test_debian)
X_NET_MINORS = [(0, minor) for minor in range(1, MODULES[X_NET].newest[1] + 1)]
GRPC_MINORS = [(1, minor) for minor in range(MODULES[GRPC].oldest[1], MODULES[GRPC].newest[1] + 1)]

pytestmark = pytest.mark.timeout(400)


def missing(program: Path, features: set[str]) -> dict[str, str]:
    fd = os.open(program, os.O_RDONLY)
    try:
        found = analyse(fd)
    finally:
        os.close(fd)
    assert found is not None
    return {name: reason for name, reason in found.missing.items() if name in features}


def assert_every_parent_is_right(
    protocol: str, *plans: str, version: str = toolchains.NEWEST, modules: str = ""
) -> None:
    ids = len(plans) * REQUESTS
    with Traced() as traced:
        hops = Hops(traced, protocol, version=version, flags=STRIPPED, modules=modules, ids=ids)
        for plan in plans:
            found = hops.load(plan, requests=REQUESTS)
            assert (found.result["ok"], found.result["failed"]) == (REQUESTS, 0), found.result
            assert len(found.spans) == found.expected
            assert (found.wrong, set(found.calls)) == (0, {"right"})


@pytest.mark.parametrize("protocol", ["http/1.1", "https/1.1", "https/2"])
@pytest.mark.parametrize("version", toolchains.RELEASES)
def test_go(version: str, protocol: str) -> None:
    assert_every_parent_is_right(
        protocol, "context/context/answer", "fan-2-2/answer", version=version
    )


@pytest.mark.parametrize("minor", GRPC_MINORS, ids=str)
def test_grpc(minor: tuple[int, int]) -> None:
    modules = releases.modules("grpc", GRPC, minor)
    program = build("grpc/server", flags=STRIPPED, modules=modules)
    tested.note(tested.ANALYSED, program, STRIPPED)
    assert missing(program, {"goroutines", "grpc_client", "grpc_server", "grpc_write"}) == {}
    plans = "unary/unary/answer", "watch/collect/answer"
    assert_every_parent_is_right("grpc", *plans, modules=modules)


@pytest.mark.parametrize("minor", X_NET_MINORS, ids=str)
def test_x_net(minor: tuple[int, int]) -> None:
    modules = releases.modules("http2", X_NET, minor)
    program = build("http2/server", flags=STRIPPED, modules=modules)
    tested.note(tested.ANALYSED, program, STRIPPED)
    # x/net's HTTP/2 is a cover of net/http's in newer releases
    both = [
        missing(program, {f"{name}_{part}" for part in ("client", "server", "write")})
        for name in ("x_http2", "http2")
    ]
    assert {} in both, both
    plans = "context/context/answer", "fan-2-2/answer"
    assert_every_parent_is_right("x/net http/2", *plans, modules=modules)
