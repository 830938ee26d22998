"""Every release of Go and every minor release of modules that the agent follows, under load.

A hundred programs are built on a new machine, which takes most of an hour.
"""

from __future__ import annotations

import pytest

from tests.fixtures.go import releases, tested, toolchains
from tests.fixtures.go.build import STRIPPED, build
from tests.fixtures.go.hops import Hops
from tests.fixtures.go.look import lacks
from tests.fixtures.traced import Traced
from throughline.runtimes.go.releases import GRPC, MODULES, X_NET

REQUESTS = 256
# golang.org/x/net before its first release is in no set: Debian's programs have it (test_debian)
X_NET_MINORS = [(0, minor) for minor in range(1, MODULES[X_NET].newest[1] + 1)]
GRPC_MINORS = [(1, minor) for minor in range(MODULES[GRPC].oldest[1], MODULES[GRPC].newest[1] + 1)]

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


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
    path = build("grpc/server", flags=STRIPPED, modules=modules)
    program = tested.note(tested.ANALYSED, path, STRIPPED)
    assert lacks(program, {"goroutines", "grpc_client", "grpc_server", "grpc_write"}) == {}
    plans = "unary/unary/answer", "watch/collect/answer"
    assert_every_parent_is_right("grpc", *plans, modules=modules)


X_HTTP2, HTTP2 = (
    {f"{name}_{part}" for part in ("client", "server", "write")} for name in ("x_http2", "http2")
)


def assert_x_net(minor: tuple[int, int], version: str, *features: set[str]) -> None:
    """One of the sets of features is there, and works."""
    modules = releases.modules("http2", X_NET, minor)
    path = build("http2/server", version=version, flags=STRIPPED, modules=modules)
    program = tested.note(tested.ANALYSED, path, STRIPPED)
    lacking = [lacks(program, one) for one in features]
    assert {} in lacking, lacking
    plans = "context/context/answer", "fan-2-2/answer"
    assert_every_parent_is_right("x/net http/2", *plans, version=version, modules=modules)


@pytest.mark.parametrize("minor", X_NET_MINORS, ids=str)
def test_x_net(minor: tuple[int, int]) -> None:
    """The newest releases are a cover of net/http's HTTP/2 from Go 1.27 on."""
    assert_x_net(minor, toolchains.NEWEST, X_HTTP2, HTTP2)


@pytest.mark.parametrize("minor", X_NET_MINORS[-12:], ids=str)
def test_x_net_that_is_no_cover(minor: tuple[int, int]) -> None:
    assert_x_net(minor, "1.26", X_HTTP2)
