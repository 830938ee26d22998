"""Exchanges: how each ends, whatever the response is and whoever closes the connection."""

from __future__ import annotations

import socket
import struct
import time

import pytest

from tests.fixtures.service import World
from tests.fixtures.sockets import accept, pair, read_all, read_block, read_exactly
from tests.fixtures.spans import Span
from tests.fixtures.traced import Traced
from tests.fixtures.wire import OK, head

COUNT = 23


#: method, what the server sends, status; `END` closes the connection
RESPONSES = {
    "length": ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200),
    "no-body": ("GET", b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n", 204),
    "not-modified": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", 304),
    "head": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", 200),
    "head-chunked": ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200),
    "chunked": (
        "GET",
        b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n1;x=y\r\n!\r\n0\r\nTrailer: z\r\n\r\n",
        201,
    ),
    "continue": (
        "POST",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        200,
    ),
    "early-hints": (
        "GET",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 404 Not\r\nContent-Length: 0\r\n\r\n",
        404,
    ),
    "no-reason": ("GET", b"HTTP/1.1 500\r\nContent-Length: 0\r\n\r\n", 500),
    "old": ("GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200),
    "bare-lf": ("GET", b"HTTP/1.1 202 OK\nContent-Length: 2\n\nok", 202),
}


@pytest.mark.parametrize("step", [0, 1, 7])
def test_responses_of_a_keep_alive_connection(world: World, step: int) -> None:
    """All responses on one connection, as client and as server, in pieces of `step` bytes."""
    traced, service, outside = world
    with (
        outside.connect(service.front) as client,
        accept(service.front) as server,
        outside.listen() as listener,
        pair(listener) as (near, far),
    ):
        for asks, answers in ((client, server), (near, far)):
            for name, (method, answer, _) in RESPONSES.items():
                asks.sendall(head(method=method, target=f"/response/{step}/{name}"))
                read_block(answers)
                size = step or len(answer)
                for at in range(0, len(answer), size):
                    answers.sendall(answer[at : at + size])
                assert read_exactly(asks, len(answer)) == answer
    mine = traced.wait_spans(
        2 * len(RESPONSES), where=lambda s: s.path.startswith(f"/response/{step}/")
    )
    assert len(mine) == 2 * len(RESPONSES)
    for kind in ("SERVER", "CLIENT"):
        found = {s.path.rpartition("/")[2]: s.status for s in mine if s.kind == kind}
        assert found == {name: status for name, (_, _, status) in RESPONSES.items()}


def _one(traced: Traced, path: str) -> Span:
    (span,) = traced.wait_spans(1, where=lambda s: s.path == path)
    return span


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_close_delimited_response(world: World, far_listener: socket.socket, version: str) -> None:
    traced, service, outside = world
    path = f"/close/{version}"
    body = b"HTTP/1.1 200 OK\r\n\r\n" * 999
    answer = f"HTTP/{version} 200 OK\r\nConnection: close\r\n\r\n".encode() + body
    with outside.connect(service.front) as client, accept(service.front) as server:
        client.sendall(head(version=f"HTTP/{version}", target=path))
        read_block(server)
        server.sendall(answer)
        server.close()
        assert read_all(client) == answer
    with pair(far_listener) as (near, far):
        near.sendall(head(version=f"HTTP/{version}", target=path + "/call"))
        read_block(far)
        far.sendall(answer)
        far.close()
        assert read_all(near) == answer
    for end, kind in (("", "SERVER"), ("/call", "CLIENT")):
        span = _one(traced, path + end)
        assert (span.kind, span.status) == (kind, 200)


def test_early_response(world: World) -> None:
    """A body that goes on after the answer is no request."""
    traced, service, outside = world
    with outside.connect(service.front) as client, accept(service.front) as server:
        for number in range(COUNT):
            body = head(target="/decoy") * 9
            path = f"/early/{number}"
            client.sendall(
                head(f"Content-Length: {len(body)}", method="PUT", target=path) + body[:50]
            )
            server.recv(65536)
            server.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            client.recv(65536)
            for at in range(50, len(body), 40):
                client.sendall(body[at : at + 40])
            read_exactly(server, len(body) - 50)
    spans = traced.wait_spans(COUNT, where=lambda s: s.path.startswith(("/early", "/decoy")))
    assert [s.path for s in spans] == [f"/early/{number}" for number in range(COUNT)]
    assert {s.status for s in spans} == {413}


def test_aborted_exchanges(world: World, far_listener: socket.socket) -> None:
    """When the client or the server closes, the span ends with the connection."""
    traced, service, outside = world
    with outside.connect(service.front) as client, accept(service.front) as server:
        client.sendall(head(target="/abort/server"))
        read_block(server)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    with outside.connect(service.front) as client, accept(service.front) as server:
        client.sendall(head(target="/abort/fin"))
        read_block(server)
        client.close()
    with pair(far_listener) as (near, far):
        near.sendall(head(target="/abort/client"))
        read_block(far)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        with pytest.raises(ConnectionError):
            near.recv(1)
    for name in ("server", "fin", "client"):
        span = _one(traced, f"/abort/{name}")
        assert span.status is None
        assert span.error


@pytest.mark.parametrize("sent", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Le"])
def test_reset_after_the_status_line(
    world: World, far_listener: socket.socket, sent: bytes
) -> None:
    """The client resets inside the answer: each side has one span, without a status."""
    traced, service, outside = world
    path = f"/reset/{len(sent)}"
    for _ in range(COUNT):
        with outside.connect(service.front) as client, accept(service.front) as server:
            client.sendall(head(target=path + "/server"))
            read_block(server)
            server.sendall(sent)
            read_exactly(client, len(sent))
            reset(client)
            with pytest.raises(ConnectionError):
                server.recv(1)
        with pair(far_listener) as (near, far):
            near.sendall(head(target=path + "/client"))
            read_block(far)
            far.sendall(sent)
            read_exactly(near, len(sent))
            reset(near)
            with pytest.raises(ConnectionError):
                far.recv(1)
    spans = traced.wait_spans(2 * COUNT, where=lambda s: s.path.startswith(path))
    assert sorted((s.path, s.kind) for s in spans) == sorted(
        [(path + "/client", "CLIENT"), (path + "/server", "SERVER")] * COUNT
    )
    assert {(s.status, s.attributes["throughline.end"]) for s in spans} == {(None, "closed")}
    assert all(s.error for s in spans)
    # the next call of the thread does not have the ended request for a parent
    served = service.serve([head(target=path + "/next")], path + "/call")
    assert served.trace_id not in {s.trace_id for s in spans}


def reset(connection: socket.socket) -> None:
    """Closes with a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_incoming_pipelining(world: World) -> None:
    traced, service, outside = world
    before = traced.counters().get("skip_pipelined", 0)
    texts = b"".join(head(target=f"/pipe/{number}") for number in range(5))
    with outside.connect(service.front) as client, accept(service.front) as server:
        client.sendall(texts)
        assert read_exactly(server, len(texts)) == texts
        server.sendall(OK * 5)
        assert read_exactly(client, len(OK) * 5) == OK * 5
    assert traced.wait_counter("skip_pipelined", before + 1) == before + 1


def test_body_of_contradictory_length_is_no_request(
    world: World,
) -> None:
    """What follows before the answer is complete may be a body: it makes no spans."""
    traced, service, outside = world
    text = head("Content-Length: 9", "Transfer-Encoding: chunked", method="POST", target="/twofold")
    with outside.connect(service.front) as client, accept(service.front) as server:
        for piece in (text, head(target="/smuggled"), head(target="/smuggled")):
            client.sendall(piece)
            read_exactly(server, len(piece))
        server.sendall(OK)
        assert read_exactly(client, len(OK)) == OK
    spans = traced.wait_spans(1, where=lambda s: s.path in ("/twofold", "/smuggled"))
    assert [(s.path, s.status) for s in spans] == [("/twofold", 200)]


def test_durations_are_plausible(world: World, far_listener: socket.socket) -> None:
    with pair(far_listener) as (near, far):
        near.sendall(head(target="/slow"))
        read_block(far)
        time.sleep(0.2)
        far.sendall(OK)
        read_exactly(near, len(OK))
    assert 200 <= _one(world[0], "/slow").milliseconds < 300
