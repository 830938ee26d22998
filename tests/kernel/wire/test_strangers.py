"""Segments of strangers leave no entry in a map, and disturb no connection."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fixtures.forger import Forger, Stranger
from tests.fixtures.link import Link
from tests.fixtures.packets import PORT, Context, Packets, listening
from tests.fixtures.paths import SERVICES
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.sockets import read_exactly
from tests.fixtures.traced import Traced
from throughline.bpf import abi, libbpf, maps

STRAYS = 40_000  # more than tl_requests holds
COUNT = 211
OBSERVE = ("tl_ingress", "tl_egress", "tl_state")
REQUEST = b"GET /23 HTTP/1.1\r\nHost: there\r\n\r\n"
ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"


def entries(traced: Traced, name: str, key_bytes: int) -> int:
    """How many entries a pinned map has."""
    table = libbpf.get_pinned(next(traced.bpffs.glob(f"abi*/{name}")))
    try:
        return sum(1 for _ in maps.keys(table, key_bytes))
    finally:
        os.close(table)


@contextmanager
def strays(port: int, total: int) -> Iterator[threading.Thread]:
    """Sends `total` requests that belong to no connection, each from a port of its own."""

    def send() -> None:
        with Stranger(port) as stranger:
            for number in range(total):
                source = f"127.23.{number // 200 % 200}.{number % 200 + 1}"
                text = f"GET /stray/{number} HTTP/1.1\r\nHost: x\r\ntracestate: a=b\r\n\r\n"
                stranger.send(text.encode(), source=source, port=1024 + number % 60000, seq=number)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


@pytest.mark.timeout(180)
def test_segments_of_no_connection_leave_nothing() -> None:
    with Traced() as traced:
        ports = [free_port() for _ in range(2)]
        for index, port in enumerate(ports):
            onward = [str(ports[index + 1])] if index < 1 else []
            command = [sys.executable, str(SERVICES / "threaded.py"), str(port), *onward]
            traced.spawn(f"s{index}", command)
        for port in ports:
            wait_port(port)
        number = 0
        with strays(ports[0], STRAYS) as sending:
            while sending.is_alive() or number < COUNT:
                connection = http.client.HTTPConnection("127.0.0.1", ports[0], timeout=10)
                connection.request("GET", f"/real/{number}")
                answer = json.loads(connection.getresponse().read())
                connection.close()
                assert len(answer["next"]["headers"]["traceparent"]) == 1
                number += 1
        spans = traced.wait_spans(3 * number, seconds=30)
        counters = traced.counters()
        left = entries(traced, "tl_requests", 8)
        states = entries(traced, "tl_tracestates", 8)
    assert (left, states) == (0, 0), counters
    assert len(spans) == 3 * number
    assert not [span.path for span in spans if not span.path.startswith("/real/")]
    by_id = {span.span_id: span for span in spans}
    roots = [span for span in spans if not span.parent_span_id]
    assert len(roots) == number
    for span in spans:
        if span.parent_span_id:
            assert by_id[span.parent_span_id].path == span.path
    assert counters["early_read"] == STRAYS
    assert "early_taken" not in counters
    assert "full_requests" not in counters


def served(packets: Packets, server: socket.socket) -> list[abi.Span]:
    """Reads and answers one request. Returns the server spans that have ended since."""
    assert read_exactly(server, len(REQUEST)) == REQUEST
    server.sendall(ANSWER)
    return [span for span in packets.spans() if span.kind == abi.Kind.SERVER]


def client_of(link: Link, version: int) -> socket.socket:
    """A connection whose first data completes the handshake, without a bare ACK before."""
    with link.left:
        client = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET)
    client.settimeout(8)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.connect((link.addresses(version)[1], PORT))
    return client


@pytest.mark.timeout(60)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("cookies", ["1", "2"])
def test_a_request_that_makes_its_connection_takes_its_option(version: int, cookies: str) -> None:
    """The option of each request is taken, with SYN cookies (2: always), too."""
    with Link() as link, Packets(link, by="ops", observe=OBSERVE) as packets:
        link.right.sysctl("ipv4/tcp_syncookies", cookies)
        with listening(link, version) as listener:
            for number in range(1, 24):
                with client_of(link, version) as client:
                    first, third = Context.fresh(), Context.fresh()
                    with packets.request(first):
                        client.sendall(REQUEST)
                    server, _ = listener.accept()
                    with server:
                        server.settimeout(8)
                        for context in (first, None, third):
                            if context is third:
                                with packets.request(third):
                                    client.sendall(REQUEST)
                            elif context is None:
                                client.sendall(REQUEST)
                            (span,) = served(packets, server)
                            if context is None:
                                assert span.evidence == abi.Evidence.NONE
                            else:
                                assert span.evidence == abi.Evidence.PACKET
                                assert span.trace_id == context.trace_id
                                assert span.parent_span_id == context.span_id
                            assert read_exactly(client, len(ANSWER)) == ANSWER
                assert packets.counters["early_taken"] == number
        counters = packets.counters
        assert counters["early_read"] == counters["early_taken"]
        if cookies == "2":
            assert link.right.statistics()["SyncookiesRecv"] == 23


@pytest.mark.timeout(60)
def test_options_of_no_connection_leave_nothing() -> None:
    """Even from the address of a peer, which anybody may write into a packet."""
    option = bytes([25, 26]) + bytes(range(1, 25)) + b"\1\1"
    with (
        Link() as link,
        Packets(link, by=None, observe=OBSERVE) as packets,
        listening(link, 4),
    ):
        source, destination = link.addresses(4)
        with link.left:
            stranger = Stranger(PORT, destination=destination)
        with stranger:
            for number in range(211):
                stranger.send(REQUEST, source=source, port=2000 + number, options=option)
        counters = packets.counters
        observe = packets.objects.get("observe")
        assert observe is not None
        for name in ("tl_requests", "tl_incoming"):
            assert list(maps.keys(observe.map_fd(name), 8)) == []
    assert counters["early_read"] == 211
    assert not {name for name in counters if name.startswith("option_")}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("variant", ["", "-legacy"])
@pytest.mark.parametrize("ahead", [20 << 20, 1 << 31, -(20 << 20)])
def test_segments_that_a_connection_cannot_take_disturb_it_in_nothing(
    ahead: int, variant: str
) -> None:
    """The sender knows addresses and ports of the connection but does not see its segments."""
    with Link() as link, Packets(link, by=None, observe=OBSERVE, variant=variant) as packets:
        link.left.sysctl("ipv4/tcp_timestamps", "0")  # a segment of ours has none that fits
        with packets.connected() as (client, server):
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with link.left:
                raw = socket.socket(client.family, socket.SOCK_RAW, socket.IPPROTO_TCP)
            with raw:
                forger = Forger(client, raw)
                for _ in range(7):  # answers are never acknowledged, so that no more than 10 leave
                    for _ in range(3):
                        forger.send(REQUEST.replace(b"/23", b"/no"), ahead=ahead)
                    forger.send(REQUEST)
                    (span,) = served(packets, server)
                    assert span.target.startswith(b"/23")
        counters = packets.counters
    assert counters["skip_out_of_window"] == 3 * 7
    assert "lost_gap" not in counters
