"""Multipath TCP: no header is written, since sk_msg does not see what the application sends."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.fixtures.counting import Counting
from tests.fixtures.service import World, traced_service
from tests.fixtures.sockets import LOOPBACK, accept, read_all, read_exactly
from tests.fixtures.wire import OK, head

COUNT = 23
IPPROTO_MPTCP = 262


def make(family: socket.AddressFamily) -> socket.socket:
    try:
        made = socket.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP)
    except OSError as error:
        pytest.skip(f"no Multipath TCP here: {error.strerror}")
    made.settimeout(10)
    return made


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with traced_service({"propagation": {"peers": ["127.0.0.0/8"]}}) as found:
        yield found


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("peer", ["mptcp", "tcp"])
def test_calls_are_untouched_and_counted(
    world: World, family: socket.AddressFamily, peer: str
) -> None:
    """Also where the peer has plain TCP only, and the connection falls back to that."""
    traced, _, outside = world
    path = f"/mptcp/{peer}/{family.name}"
    with make(family) if peer == "mptcp" else outside.make(family) as listener:
        listener.bind((LOOPBACK[family], 0))
        listener.listen(8)
        count = Counting(traced)
        with make(family) as near:
            near.connect(listener.getsockname()[:2])
            with accept(listener) as far:
                for _ in range(COUNT):
                    near.sendall(text := head("Content-Length: 5", target=path) + b"hello")
                    assert read_exactly(far, len(text)) == text
                    far.sendall(OK)
                    assert read_exactly(near, len(OK)) == OK
                near.shutdown(socket.SHUT_WR)
                assert read_all(far) == b""
        assert count("skip_mptcp", COUNT) == COUNT
        for name in ("enrolled", "enrol_failed", "injected", "skip_not_enrolled", "lost_gap"):
            assert count(name, 0) == 0, name
    spans = traced.wait_spans(COUNT, where=lambda s: s.path == path and s.kind == "CLIENT")
    assert len(spans) == COUNT
    assert {span.status for span in spans} == {200}


def test_served_requests_are_spans(world: World) -> None:
    traced, _, outside = world
    with make(socket.AF_INET) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        with outside.connect(listener) as client, accept(listener) as server:
            for number in range(COUNT):
                client.sendall(text := head(target=f"/mptcp-server/{number}"))
                assert read_exactly(server, len(text)) == text
                server.sendall(OK)
                assert read_exactly(client, len(OK)) == OK
    spans = traced.wait_spans(COUNT, where=lambda s: s.path.startswith("/mptcp-server/"))
    assert len(spans) == COUNT


def test_no_option_for_a_call_of_a_request(world: World) -> None:
    """The group `packets` leaves its segments alone as well: they are full of options."""
    traced, service, outside = world
    with make(socket.AF_INET) as listener, make(socket.AF_INET) as near:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        count = Counting(traced)
        with outside.connect(service.front) as client, accept(service.front) as server:
            client.sendall(head(target="/mptcp-front"))
            server.recv(4096)
            near.connect(listener.getsockname())
            with accept(listener) as far:
                for text in (b"\x16\x03\x01 not HTTP", head(target="/mptcp-back")):
                    near.sendall(text)
                    assert read_exactly(far, len(text)) == text
            server.sendall(OK)
            assert read_exactly(client, len(OK)) == OK
        assert count("requests_server", 1) == 1
        for name in ("option_written", "option_no_room", "option_too_big", "forced_drop"):
            assert count(name, 0) == 0, name
