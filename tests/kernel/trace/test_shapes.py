"""Exchanges of unusual shapes: pipelined, in many small pieces, with answers that are none.

Each span that began ends with the right status. The connection is followed while that is certain.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from tests.fixtures.certificate import make_certificate
from tests.fixtures.counting import Counting
from tests.fixtures.operated import Operated
from tests.fixtures.outside import Outside
from tests.fixtures.paths import SERVICES
from tests.fixtures.service import traced_service
from tests.fixtures.sockets import accept, listen, pair, read_block, read_exactly
from tests.fixtures.spans import Span
from tests.fixtures.tls_pair import exchange, secured, wait_probed
from tests.fixtures.traced import Traced
from tests.fixtures.wire import OK, head, inserted

COUNT = 5


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Traced, Outside]]:
    with traced_service() as (traced, _, outside):
        yield traced, outside


@pytest.fixture
def far_listener(world: tuple[Traced, Outside]) -> Iterator[socket.socket]:
    with world[1].listen() as found:
        yield found


@pytest.fixture(scope="module")
def front(world: tuple[Traced, Outside]) -> Iterator[socket.socket]:
    """The listener of the traced service, in the cgroup that the process has now."""
    with listen() as found:
        yield found


def ended(traced: Traced, path: str, count: int) -> list[tuple[str, str, object]]:
    """Kind, path and status of the spans below a path."""
    spans = traced.wait_spans(count, seconds=5, where=lambda span: span.path.startswith(path))
    return sorted(map(shape, spans))


def shape(span: Span) -> tuple[str, str, object]:
    return span.kind, span.path, span.attributes.get("http.response.status_code")


# -- pipelined -------------------------------------------------------------------------------------


def test_a_pipelined_server_s_first_request_is_its_span(
    world: tuple[Traced, Outside], front: socket.socket
) -> None:
    traced, outside = world
    count = Counting(traced)
    for number in range(COUNT):
        with outside.connect(front) as client, accept(front) as server:
            text = head(target=f"/piped/{number}") + head(target="/piped/second")
            client.sendall(text)
            read_exactly(server, len(text))
            for _ in range(2):
                server.sendall(OK)
            read_exactly(client, 2 * len(OK))
    assert ended(traced, "/piped/", COUNT) == [
        ("SERVER", f"/piped/{number}", 200) for number in range(COUNT)
    ]
    assert count("skip_pipelined", COUNT) == COUNT


def test_one_that_is_closed_before_it_is_answered(
    world: tuple[Traced, Outside], front: socket.socket
) -> None:
    traced, outside = world
    with outside.connect(front) as client, accept(front) as server:
        text = head(target="/unanswered/0") + head(target="/unanswered/second")
        client.sendall(text)
        read_exactly(server, len(text))
    assert ended(traced, "/unanswered/", 1) == [("SERVER", "/unanswered/0", None)]


def test_an_empty_line_before_it_does_not_give_the_first_the_text_of_the_second(
    world: tuple[Traced, Outside], front: socket.socket
) -> None:
    traced, outside = world
    with outside.connect(front) as client, accept(front) as server:
        text = head(target="/lines/0")
        client.sendall(text)
        read_exactly(server, len(text))
        second = b"\r\n" + head(target="/lines/second")
        client.sendall(second)
        read_exactly(server, len(second))
        server.sendall(OK)
        read_exactly(client, len(OK))
    assert ended(traced, "/lines/", 1) == [("SERVER", "/lines/0", 200)]


def test_a_pipelining_client_s_first_call_is_its_span(
    world: tuple[Traced, Outside], far_listener: socket.socket
) -> None:
    traced, _ = world
    for number in range(COUNT):
        with pair(far_listener) as (near, far):
            first, second = head(target=f"/pipes/{number}"), head(target="/pipes/second")
            near.sendall(first + second)
            received = read_exactly(far, len(first + second) + 70)
            assert inserted(first + second, received).trace_id
            for _ in range(2):
                far.sendall(OK)
            read_exactly(near, 2 * len(OK))
    assert ended(traced, "/pipes/", COUNT) == [
        ("CLIENT", f"/pipes/{number}", 200) for number in range(COUNT)
    ]


def test_a_call_by_tcp_fast_open_is_a_span(world: tuple[Traced, Outside]) -> None:
    """The request leaves with the SYN, in a network namespace whose servers accept that."""
    traced, _ = world
    script = (
        "ip link set lo up; echo 3 > /proc/sys/net/ipv4/tcp_fastopen;"
        f" exec {sys.executable} {SERVICES / 'fastopen.py'} {COUNT}"
    )
    service = traced.spawn("fastopen", ["unshare", "-n", "sh", "-c", script])
    assert service.wait(20) == 0, "no request left with a SYN"
    # the listener gets the server's request, see tl_early
    calls = [one for one in ended(traced, "/fast/", COUNT) if one[0] == "CLIENT"]
    assert calls == [("CLIENT", f"/fast/{number}", 200) for number in range(COUNT)]


# -- small pieces ----------------------------------------------------------------------------------


def chunked(size: int, total: int) -> bytes:
    """A chunked body of about `total` bytes on the wire."""
    one = b"%x\r\n%s\r\n" % (size, b"x" * size)
    return one * (total // len(one)) + b"0\r\n\r\n"


SIZES = [1, 7, 100, 300]
TOTAL = 60_000  # one segment of loopback


@pytest.mark.parametrize("size", SIZES)
def test_many_small_chunks_in_one_send(
    world: tuple[Traced, Outside], far_listener: socket.socket, size: int
) -> None:
    traced, _ = world
    before = traced.counters()
    body = chunked(size, TOTAL)
    text = head("Transfer-Encoding: chunked", method="POST", target=f"/small/{size}/0") + body
    with pair(far_listener) as (near, far):
        near.sendall(text)
        assert inserted(text, read_exactly(far, len(text) + 70)).trace_id
        far.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        read_exactly(near, 47 + len(body))
        second = head(target=f"/small/{size}/1")
        near.sendall(second)
        assert inserted(second, read_block(far)).trace_id
        far.sendall(OK)
        read_exactly(near, len(OK))
    path = f"/small/{size}/"
    assert ended(traced, path, 2) == [("CLIENT", f"{path}{number}", 200) for number in range(2)]
    assert lost(traced, before) == {}


def lost(traced: Traced, before: dict[str, int]) -> dict[str, int]:
    """How much the counters of connections that are not followed have grown."""
    return {
        name: total - before.get(name, 0)
        for name, total in traced.counters().items()
        if name.startswith(("lost_", "skip_", "tls_")) and total != before.get(name, 0)
    }


@pytest.mark.parametrize("size", SIZES)
def test_many_small_chunks_in_one_segment(
    world: tuple[Traced, Outside], front: socket.socket, size: int
) -> None:
    traced, outside = world
    before = traced.counters()
    body = chunked(size, TOTAL)
    lines = head("Transfer-Encoding: chunked", method="POST", target=f"/segment/{size}/0")
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    with outside.connect(front) as client, accept(front) as server:
        exchange(client, server, lines + body, answer)
        exchange(client, server, head(target=f"/segment/{size}/1"), OK)
    path = f"/segment/{size}/"
    assert ended(traced, path, 2) == [("SERVER", f"{path}{number}", 200) for number in range(2)]
    assert lost(traced, before) == {}


def test_many_small_chunks_inside_of_tls() -> None:
    with Operated() as traced:
        certificate = make_certificate(traced.directory)
        with traced.inside("service"), secured(certificate) as (client, server):
            wait_probed(traced)
            for size in SIZES:
                body = chunked(size, TOTAL)
                path = f"/tls/{size}/0"
                text = head("Transfer-Encoding: chunked", method="POST", target=path) + body
                answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body
                exchange(client, server, text, answer)
                exchange(client, server, head(target=f"/tls/{size}/1"), OK)
            wanted = sorted(
                (kind, f"/tls/{size}/{number}", 200)
                for kind in ("CLIENT", "SERVER")
                for size in SIZES
                for number in range(2)
            )
            assert ended(traced, "/tls/", len(wanted)) == wanted
            assert "tls_lost" not in traced.counters()


# -- answers that cannot be followed ---------------------------------------------------------------

# the bytes behind a message without a body are not HTTP
HEAD_WITH_BODY = [b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", *[b"x" * 3000] * 3]
MALFORMED = [b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", b"abc", b"d"]


@pytest.mark.parametrize("pieces", [HEAD_WITH_BODY, MALFORMED], ids=["behind", "malformed"])
@pytest.mark.parametrize("side", ["server", "client"])
def test_the_next_answer_is_followed_again(
    world: tuple[Traced, Outside],
    front: socket.socket,
    far_listener: socket.socket,
    pieces: list[bytes],
    side: str,
) -> None:
    traced, outside = world
    count = Counting(traced)
    method = "HEAD" if pieces is HEAD_WITH_BODY else "GET"
    path = f"/lost/{side}/{method}/"
    if side == "server":
        asks, answers = outside.connect(front), accept(front)
    else:
        asks = socket.create_connection(far_listener.getsockname())
        answers = accept(far_listener)
    with asks, answers:
        asks.sendall(head(method=method, target=f"{path}0"))
        read_block(answers)
        for piece in pieces:
            answers.sendall(piece)
            read_exactly(asks, len(piece))
        for number in range(1, COUNT):
            asks.sendall(head(target=f"{path}{number}"))
            read_block(answers)
            answers.sendall(OK)
            read_exactly(asks, len(OK))
    kind = side.upper()
    assert ended(traced, path, COUNT) == [(kind, f"{path}{number}", 200) for number in range(COUNT)]
    assert count("skip_malformed", 1) == 1
    assert count("lost_gap", 0) == 0


def test_a_request_inside_of_tls_that_is_malformed_is_not_the_last() -> None:
    with Operated() as traced:
        certificate = make_certificate(traced.directory)
        with traced.inside("service"), secured(certificate) as (client, server):
            wait_probed(traced)
            count = Counting(traced)
            text = head("Content-Length: 1", "Content-Length: 2", method="POST", target="/bad/0")
            exchange(client, server, text + b"a", OK)
            for number in range(1, COUNT):
                exchange(client, server, head(target=f"/bad/{number}"), OK)
            assert ended(traced, "/bad/", 2 * COUNT) == sorted(
                (kind, f"/bad/{number}", 200)
                for kind in ("CLIENT", "SERVER")
                for number in range(COUNT)
            )
            assert count("skip_malformed", 2) == 2
