"""Responses, ends of exchanges, real peers, and what an enrolled socket does differently."""

from __future__ import annotations

import array
import ctypes
import fcntl
import http.client
import os
import select
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator

import pytest

from tests.fixtures.outside import Outside
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.service import Service
from tests.fixtures.sockets import accept, listen, pair, read_all, read_block, read_exactly
from tests.fixtures.spans import Span
from tests.fixtures.traced import Traced
from tests.fixtures.wire import OK, inserted
from throughline.bpf import fionread

COUNT = 23


def request(path: str, *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    head = [f"{method} {path} HTTP/{version}", "Host: far.example", *lines, "", ""]
    return "\r\n".join(head).encode()


# -- responses -------------------------------------------------------------------------------------

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
def test_responses_of_a_keep_alive_connection(
    world: tuple[Traced, Service, Outside], step: int
) -> None:
    """All on one connection, both as client and as server, in pieces of `step` bytes."""
    traced, service, outside = world
    with (
        outside.connect(service.front) as client,
        accept(service.front) as server,
        outside.listen() as listener,
        pair(listener) as (near, far),
    ):
        for asks, answers in ((client, server), (near, far)):
            for name, (method, answer, _) in RESPONSES.items():
                asks.sendall(request(f"/response/{step}/{name}", method=method))
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
def test_close_delimited_response(
    world: tuple[Traced, Service, Outside], far_listener: socket.socket, version: str
) -> None:
    traced, service, outside = world
    path = f"/close/{version}"
    body = b"HTTP/1.1 200 OK\r\n\r\n" * 999
    answer = f"HTTP/{version} 200 OK\r\nConnection: close\r\n\r\n".encode() + body
    with outside.connect(service.front) as client, accept(service.front) as server:
        client.sendall(request(path, version=version))
        read_block(server)
        server.sendall(answer)
        server.close()
        assert read_all(client) == answer
    with pair(far_listener) as (near, far):
        near.sendall(request(path + "/call", version=version))
        read_block(far)
        far.sendall(answer)
        far.close()
        assert read_all(near) == answer
    for end, kind in (("", "SERVER"), ("/call", "CLIENT")):
        span = _one(traced, path + end)
        assert (span.kind, span.status) == (kind, 200)


def test_early_response(world: tuple[Traced, Service, Outside]) -> None:
    """The answer comes before the body is complete: the body is still a body."""
    traced, service, outside = world
    with outside.connect(service.front) as client, accept(service.front) as server:
        for number in range(COUNT):
            body = request("/decoy") * 9
            path = f"/early/{number}"
            client.sendall(request(path, f"Content-Length: {len(body)}", method="PUT") + body[:50])
            server.recv(65536)
            server.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            client.recv(65536)
            for at in range(50, len(body), 40):
                client.sendall(body[at : at + 40])
            read_exactly(server, len(body) - 50)
    spans = traced.wait_spans(COUNT, where=lambda s: s.path.startswith(("/early", "/decoy")))
    assert [s.path for s in spans] == [f"/early/{number}" for number in range(COUNT)]
    assert {s.status for s in spans} == {413}


def test_aborted_exchanges(
    world: tuple[Traced, Service, Outside], far_listener: socket.socket
) -> None:
    """A client that goes away, a server that goes away: the span ends with the connection."""
    traced, service, outside = world
    with outside.connect(service.front) as client, accept(service.front) as server:
        client.sendall(request("/abort/server"))
        read_block(server)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    with outside.connect(service.front) as client, accept(service.front) as server:
        client.sendall(request("/abort/fin"))
        read_block(server)
        client.close()
    with pair(far_listener) as (near, far):
        near.sendall(request("/abort/client"))
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
    world: tuple[Traced, Service, Outside], far_listener: socket.socket, sent: bytes
) -> None:
    """The client goes away inside the answer: one span each, of an exchange without an answer."""
    traced, service, outside = world
    path = f"/reset/{len(sent)}"
    for _ in range(COUNT):
        with outside.connect(service.front) as client, accept(service.front) as server:
            client.sendall(request(path + "/server"))
            read_block(server)
            server.sendall(sent)
            read_exactly(client, len(sent))
            reset(client)
            with pytest.raises(ConnectionError):
                server.recv(1)
        with pair(far_listener) as (near, far):
            near.sendall(request(path + "/client"))
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
    # the thread is free again: its next call has no ended request for a parent
    served = service.serve([request(path + "/next")], path + "/call")
    assert served.trace_id not in {s.trace_id for s in spans}


def reset(connection: socket.socket) -> None:
    """Closes with a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_incoming_pipelining(world: tuple[Traced, Service, Outside]) -> None:
    traced, service, outside = world
    before = traced.counters().get("skip_pipelined", 0)
    texts = b"".join(request(f"/pipe/{number}") for number in range(5))
    with outside.connect(service.front) as client, accept(service.front) as server:
        client.sendall(texts)
        assert read_exactly(server, len(texts)) == texts
        server.sendall(OK * 5)
        assert read_exactly(client, len(OK) * 5) == OK * 5
    assert traced.wait_counter("skip_pipelined", before + 1) == before + 1


def test_body_of_contradictory_length_is_no_request(
    world: tuple[Traced, Service, Outside],
) -> None:
    """Until the answer is complete, what follows may be body: it makes no spans."""
    traced, service, outside = world
    text = request("/twofold", "Content-Length: 9", "Transfer-Encoding: chunked", method="POST")
    with outside.connect(service.front) as client, accept(service.front) as server:
        for piece in (text, request("/smuggled"), request("/smuggled")):
            client.sendall(piece)
            read_exactly(server, len(piece))
        server.sendall(OK)
        assert read_exactly(client, len(OK)) == OK
    spans = traced.wait_spans(1, where=lambda s: s.path in ("/twofold", "/smuggled"))
    assert [(s.path, s.status) for s in spans] == [("/twofold", 200)]


def test_durations_are_plausible(
    world: tuple[Traced, Service, Outside], far_listener: socket.socket
) -> None:
    with pair(far_listener) as (near, far):
        near.sendall(request("/slow"))
        read_block(far)
        time.sleep(0.2)
        far.sendall(OK)
        read_exactly(near, len(OK))
    assert 200 <= _one(world[0], "/slow").milliseconds < 300


# -- real peers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nginx(world: tuple[Traced, Service, Outside], tmp_path_factory: pytest.TempPathFactory) -> int:
    """nginx as a traced proxy to a test's own far side; returns its port."""
    directory = tmp_path_factory.mktemp("nginx")
    port = free_port()
    (directory / "nginx.conf").write_text(f"""
        daemon off; pid {directory}/pid; error_log stderr error; worker_processes 1; user root;
        events {{ worker_connections 256; }}
        http {{
            access_log off; client_max_body_size 0; client_body_temp_path {directory}/body;
            proxy_temp_path {directory}/proxy; proxy_request_buffering off;
            server {{
                listen 127.0.0.1:{port};
                location ~ ^/to/(?<port>[0-9]+)/ {{
                    proxy_pass http://127.0.0.1:$port;
                    proxy_http_version 1.1;
                }}
            }}
        }}""")
    command = ["nginx", "-e", "stderr", "-p", str(directory), "-c", str(directory / "nginx.conf")]
    world[0].spawn("nginx", command)
    wait_port(port)
    return port


def test_nginx_passes_bodies_on(
    world: tuple[Traced, Service, Outside], far_listener: socket.socket, nginx: int
) -> None:
    """A 5 MB body through a non-blocking proxy, and a 5 MB answer back."""
    traced = world[0]
    body = request("/decoy") * 120_000
    path = f"/to/{far_listener.getsockname()[1]}/body"
    answers = []

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", nginx, timeout=20)
        connection.request("POST", path, body=body)
        answers.append(connection.getresponse().read())
        connection.close()

    client = threading.Thread(target=ask)
    client.start()
    with accept(far_listener) as far:
        block = read_block(far)
        head, _, rest = block.partition(b"\r\n\r\n")
        assert head.count(b"traceparent: 00-") == 1
        assert rest + read_exactly(far, len(body) - len(rest)) == body
        far.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        client.join()
    assert answers == [body]
    spans = traced.wait_spans(3, where=lambda s: s.path == path)
    assert sorted((s.service.rpartition("/")[2], s.kind) for s in spans) == [
        ("nginx", "CLIENT"),
        ("nginx", "SERVER"),
        ("service", "CLIENT"),
    ]
    assert len({s.trace_id for s in spans}) == 1


def test_curl(world: tuple[Traced, Service, Outside], far_listener: socket.socket) -> None:
    """GET, a POST with Expect, and an upload of unknown length; all on connections of curl."""
    url = f"http://127.0.0.1:{far_listener.getsockname()[1]}"
    body = os.urandom(2_000_000)
    cases = [
        ([f"{url}/curl"], b""),
        (["-H", "Expect: 100-continue", "--data-binary", "@-", f"{url}/curl"], body),
        (["-T", "-", f"{url}/curl"], body),
    ]
    for arguments, sent in cases:
        client = subprocess.Popen(
            ["curl", "-sS", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        got = b""
        writer = threading.Thread(target=client.communicate, args=(sent,))
        writer.start()
        with accept(far_listener) as far:
            got = read_block(far)
            head, _, rest = got.partition(b"\r\n\r\n")
            assert head.count(b"\r\ntraceparent: 00-") == 1
            if b"100-continue" in head:
                far.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            if b"chunked" in head:
                while not rest.endswith(b"\r\n0\r\n\r\n"):
                    rest += far.recv(1 << 20)
                rest = dechunk(rest)
            elif sent:
                rest += read_exactly(far, len(body) - len(rest))
            assert rest == sent
            far.sendall(OK)
            writer.join()
        assert client.returncode == 0


def dechunk(text: bytes) -> bytes:
    parts, at = [], 0
    while True:
        end = text.index(b"\r\n", at)
        size = int(text[at:end], 16)
        parts.append(text[end + 2 : end + 2 + size])
        at = end + 4 + size
        if not size:
            return b"".join(parts)


@pytest.mark.parametrize("own", ["", "traceparent"])
def test_http_client(
    world: tuple[Traced, Service, Outside], far_listener: socket.socket, own: str
) -> None:
    connection = http.client.HTTPConnection(*far_listener.getsockname(), timeout=10)
    connection.connect()
    with accept(far_listener) as far:
        for number in range(COUNT):
            headers = {own: f"00-{number + 1:032x}-00f067aa0ba902b7-01"} if own else {}
            body = b"b" * number if number % 2 else None
            connection.request("POST", f"/http/{number}", body=body, headers=headers)
            block = read_block(far)
            missing = (number if body else 0) - len(block.partition(b"\r\n\r\n")[2])
            block += read_exactly(far, missing)
            assert block.count(b"traceparent: ") == 1
            far.sendall(OK)
            assert connection.getresponse().read() == b"ok"
    connection.close()


# -- what an application can see on its own socket -------------------------------------------------
# On kernels with a broken FIONREAD, data takes another way to the reader (decision 0002).


def readable(connection: socket.socket) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(connection, termios.FIONREAD, count)
    return count[0]


@pytest.fixture(params=["plain", "enrolled", "used"])
def ends(
    request: pytest.FixtureRequest,
    world: tuple[Traced, Service, Outside],
    far_listener: socket.socket,
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client connection: outside of the cgroup, inside, and inside after a first exchange."""
    if request.param == "plain":
        with world[2].connect(far_listener) as near, accept(far_listener) as far:
            yield near, far
        return
    with pair(far_listener) as (near, far):
        if request.param == "used":
            near.sendall(text := b"GET /used HTTP/1.1\r\nHost: h\r\n\r\n")
            assert inserted(text, read_block(far)).trace_id
            far.sendall(OK)
            assert read_exactly(near, len(OK)) == OK
        yield near, far


Ends = tuple[socket.socket, socket.socket]


def test_peek_and_fionread(ends: Ends, request: pytest.FixtureRequest) -> None:
    near, far = ends
    assert readable(near) == 0
    far.sendall(b"hello")
    assert near.recv(3, socket.MSG_PEEK) == b"hel"
    assert near.recv(99, socket.MSG_PEEK) == b"hello"
    if "plain" not in request.node.name and readable(near) == 0:
        assert fionread.is_broken()
        assert near.recv(99) == b"hello"
        pytest.xfail("this kernel's FIONREAD says 0 before the first request: decision 0002")
    assert readable(near) == 5
    assert near.recv(2) == b"he"
    assert readable(near) == 3
    far.sendall(b"world")
    select.select([near], [], [], 1)
    time.sleep(0.01)
    assert readable(near) == 8
    assert near.recv(99, socket.MSG_PEEK) == b"lloworld"
    assert near.recv(99) == b"lloworld"
    assert readable(near) == 0


def test_dontwait(ends: Ends) -> None:
    near, far = ends
    near.settimeout(None)
    with pytest.raises(BlockingIOError):
        near.recv(1, socket.MSG_DONTWAIT)
    far.sendall(b"x")
    select.select([near], [], [], 1)
    assert near.recv(1, socket.MSG_DONTWAIT) == b"x"
    with pytest.raises(BlockingIOError):
        near.recv(1, socket.MSG_DONTWAIT)


def test_readiness(ends: Ends) -> None:
    """poll and edge-triggered epoll see data once per arrival, and the peer's end."""
    near, far = ends
    poll = select.poll()
    poll.register(near, select.POLLIN | select.POLLRDHUP)
    edge = select.epoll()
    assert poll.poll(0) == []
    edge.register(near, select.EPOLLIN | select.EPOLLET | select.EPOLLRDHUP)
    for number in range(50):
        far.sendall(text := b"%d" % number)
        assert poll.poll(1000) == [(near.fileno(), select.POLLIN)]
        assert edge.poll(1) == [(near.fileno(), select.EPOLLIN)]
        assert near.recv(99) == text
        assert poll.poll(0) == []
        assert edge.poll(0) == []
    far.shutdown(socket.SHUT_WR)
    ((_, events),) = edge.poll(1)
    assert events & select.EPOLLIN
    assert events & select.EPOLLRDHUP
    assert near.recv(99) == b""
    edge.close()


def test_half_close(ends: Ends) -> None:
    """Each side stops sending before it has read: nothing is lost."""
    near, far = ends
    data = os.urandom(2_000_000)
    near.shutdown(socket.SHUT_WR)
    assert far.recv(1) == b""
    sender = threading.Thread(target=lambda: (far.sendall(data), far.shutdown(socket.SHUT_WR)))
    sender.start()
    time.sleep(0.1)
    assert read_all(near) == data
    sender.join()


def test_end_behind_unread_data(ends: Ends) -> None:
    near, far = ends
    data = os.urandom(50_000)
    far.sendall(data)
    far.close()
    time.sleep(0.05)
    assert read_all(near) == data
    assert near.recv(1) == b""


def test_small_receive_buffer(ends: Ends) -> None:
    """Flow control: a slow reader of a large answer gets every byte, and the sender is held up."""
    near, far = ends
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
    data = os.urandom(8_000_000)
    sender = threading.Thread(target=far.sendall, args=(data,))
    sender.start()
    time.sleep(0.2)
    assert sender.is_alive(), "8 MB fit nowhere"
    assert read_exactly(near, len(data)) == data
    sender.join()


def test_recv_into_many_buffers(ends: Ends) -> None:
    near, far = ends
    far.sendall(b"0123456789")
    parts = [bytearray(3), bytearray(4), bytearray(9)]
    size, _, flags, _ = near.recvmsg_into(parts)
    assert (size, flags) == (10, 0)
    assert b"".join(parts)[:10] == b"0123456789"


def test_waitall(ends: Ends) -> None:
    near, far = ends
    near.settimeout(None)  # Python's timeouts make a socket non-blocking
    sender = threading.Thread(
        target=lambda: (far.sendall(b"a"), time.sleep(0.1), far.sendall(b"b"))
    )
    sender.start()
    got = near.recv(2, socket.MSG_WAITALL)
    sender.join()
    assert got == b"ab"


def test_low_water_mark(ends: Ends) -> None:
    near, far = ends
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    far.sendall(b"12345")
    early = select.select([near], [], [], 0.1)[0]
    far.sendall(b"67890")
    assert select.select([near], [], [], 1)[0] == [near]
    assert near.recv(99) == b"1234567890"
    assert not early


def test_splice(ends: Ends) -> None:
    near, far = ends
    far.sendall(b"spliced")
    select.select([near], [], [], 1)
    source, sink = os.pipe()
    near.setblocking(False)  # a blocking socket would wait for ever
    try:
        got = _splice(near.fileno(), sink, 100)
        assert got == 7
        assert os.read(source, 99) == b"spliced"
    finally:
        os.close(source)
        os.close(sink)


def _splice(source: int, sink: int, size: int) -> int:
    """splice(2) with SPLICE_F_NONBLOCK, which Python 3.10 has not; -1 for an error."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.splice.restype = ctypes.c_ssize_t
    libc.splice.argtypes = [ctypes.c_int, ctypes.c_void_p] * 2 + [ctypes.c_size_t, ctypes.c_uint]
    return int(libc.splice(source, None, sink, None, size, 2))


def test_error_of_a_dead_peer(ends: Ends) -> None:
    near, far = ends
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    with pytest.raises(BrokenPipeError):
        near.send(b"x")


def test_receive_timeout(ends: Ends) -> None:
    near, _ = ends
    near.settimeout(0.1)
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        near.recv(1)
    assert 0.09 < time.monotonic() - begin < 1


def test_kernel_receive_timeout(ends: Ends) -> None:
    """SO_RCVTIMEO, which blocking clients use."""
    near, _ = ends
    near.settimeout(None)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 100_000))
    begin = time.monotonic()
    with pytest.raises(BlockingIOError):
        near.recv(1)
    assert 0.09 < time.monotonic() - begin < 1


def test_other_end_is_not_enrolled(world: tuple[Traced, Service, Outside]) -> None:
    """Server sockets are never in the sockhash: FIONREAD and MSG_WAITALL are the kernel's own."""
    with listen() as front, world[2].connect(front) as client, accept(front) as server:
        client.sendall(b"12345")
        select.select([server], [], [], 1)
        assert readable(server) == 5
        assert server.recv(5, socket.MSG_WAITALL) == b"12345"
