"""Connections that do not speak HTTP/1, and tunnels, leave the sockhash; no byte changes."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.certificate import make_certificate
from tests.fixtures.far_side import serving
from tests.fixtures.service import World
from tests.fixtures.sockets import accept, pair, read_all, read_block, read_exactly
from tests.fixtures.wire import OK, Context, inserted

DECOY = b"GET /decoy HTTP/1.1\r\nHost: decoy.example\r\n\r\n"
RANDOM = random.Random(53)


def postgres(text: bytes) -> bytes:
    return struct.pack("!I", len(text) + 4) + text


#: the first bytes of a client
FIRST = {
    "tls": bytes.fromhex("160301020001 0001fc0303") + RANDOM.randbytes(506),
    "ssh": b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n",
    "postgres-startup": postgres(b"\x00\x03\x00\x00user\x00me\x00database\x00mine\x00\x00"),
    "postgres-ssl": bytes.fromhex("0000000804d2162f"),
    "redis-resp": b"*1\r\n$4\r\nPING\r\n",
    "redis-inline": b"PING\r\n",
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "http-0.9": b"GET /index.html\r\n",
    "smtp": b"EHLO client.example\r\n",
    "mongo": bytes.fromhex("3a000000010000000000000004200000") + b"admin.$cmd\x00",
    "memcached": b"get key\r\n",
    "mqtt": bytes.fromhex("101000044d5154540402003c00046d696e65"),
    "one zero byte": b"\x00",
    "line ends": b"\r\n" * 20,
    "empty target": b"GET  HTTP/1.1\r\n\r\n",
    "http/3": b"GET / HTTP/3.0\r\n\r\n",
    "rtsp": b"OPTIONS rtsp://far.example/ RTSP/1.0\r\nCSeq: 1\r\n\r\n",
    "sip": b"INVITE sip:a@b SIP/2.0\r\nVia: SIP/2.0/TCP h\r\n\r\n",
    "a long method": b"A" * 17 + b" / HTTP/1.1\r\n\r\n",
    "random": RANDOM.randbytes(700),
}


@pytest.fixture
def evictions(world: World) -> Iterator[None]:
    """Exactly one connection of the test is recognised, and leaves the sockhash."""
    before = world[0].counters()
    yield
    world[0].wait_counter("evicted", before.get("evicted", 0) + 1, seconds=4)
    after = world[0].counters()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["skip_not_http"] == 1, grown
    assert grown["evicted"] == 1, grown
    assert not grown.get("injected"), grown


def exchange(near: socket.socket, far: socket.socket, size: int) -> None:
    """`size` bytes of decoys each way at once."""
    data = (DECOY * (size // len(DECOY) + 1))[:size]

    def send(connection: socket.socket) -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)

    senders = [threading.Thread(target=send, args=(one,)) for one in (near, far)]
    for sender in senders:
        sender.start()
    found = []
    reader = threading.Thread(target=lambda: found.append(read_all(near)))
    reader.start()
    assert read_all(far) == data
    for one in (*senders, reader):
        one.join()
    assert found == [data]


def test_first_bytes_of_other_protocols(world: World, far_listener: socket.socket) -> None:
    traced = world[0]
    before = traced.counters()
    for name, first in FIRST.items():
        for pieces in ([first], [first[:1], first[1:]]):
            with pair(far_listener) as (near, far):
                for piece in pieces:
                    near.sendall(piece)
                assert read_exactly(far, len(first)) == first, name
                far.sendall(b"answer")
                assert read_exactly(near, 6) == b"answer"
                exchange(near, far, 300_000)
    wanted = before.get("evicted", 0) + 2 * len(FIRST)
    assert traced.wait_counter("evicted", wanted, seconds=4) == wanted
    after = traced.counters()
    assert after["skip_not_http"] - before.get("skip_not_http", 0) == 2 * len(FIRST)
    assert not after.get("injected", 0) - before.get("injected", 0)


@pytest.mark.usefixtures("evictions")
def test_large_transfer(far_listener: socket.socket) -> None:
    with pair(far_listener) as (near, far):
        near.sendall(b"\x00")
        read_exactly(far, 1)
        exchange(near, far, 30_000_000)


@pytest.mark.usefixtures("evictions")
def test_request_behind_other_bytes_is_not_touched(far_listener: socket.socket) -> None:
    with pair(far_listener) as (near, far):
        for text in (b"\x01\x02", DECOY, DECOY):
            near.sendall(text)
            assert read_exactly(far, len(text)) == text
            far.sendall(OK)
            assert read_exactly(near, len(OK)) == OK


@pytest.mark.usefixtures("evictions")
def test_server_speaks_first(far_listener: socket.socket) -> None:
    with pair(far_listener) as (near, far):
        far.sendall(b"220 far.example ESMTP\r\n")
        assert near.recv(100) == b"220 far.example ESMTP\r\n"
        near.sendall(b"EHLO x\r\n")
        assert far.recv(100) == b"EHLO x\r\n"
        exchange(near, far, 1_000_000)


@pytest.mark.usefixtures("evictions")
def test_banner_that_is_read_late(far_listener: socket.socket) -> None:
    """SSH: both banners cross. Bytes that are unread when the socket leaves must not get lost."""
    with pair(far_listener) as (near, far):
        far.sendall(b"SSH-2.0-far\r\n")
        near.sendall(b"SSH-2.0-near\r\n")
        assert far.recv(100) == b"SSH-2.0-near\r\n"
        far.sendall(b"K" * 1000)
        time.sleep(0.05)
        near.sendall(b"k" * 1000)
        assert read_exactly(far, 1000) == b"k" * 1000
        assert read_exactly(near, 13 + 1000) == b"SSH-2.0-far\r\n" + b"K" * 1000
        exchange(near, far, 1_000_000)


def test_receive_only(world: World, far_listener: socket.socket) -> None:
    """A client that never sends stays enrolled; all bytes arrive."""
    data = os.urandom(3_000_000)
    with pair(far_listener) as (near, far):
        sender = threading.Thread(target=lambda: (far.sendall(data), far.close()))
        sender.start()
        assert read_all(near) == data
        sender.join()


def test_ping_pong_under_eviction(world: World, far_listener: socket.socket) -> None:
    """Answers race with the eviction on many connections: none is lost or late."""
    for number in range(400):
        with pair(far_listener) as (near, far):
            near.sendall(b"\x00\x01")
            for turn in range(4):
                far.sendall(text := b"%d.%d;" % (number, turn) * (1 + number % 50))
                if number % 2:
                    far.recv(100)
                near.sendall(b"\x02")
                assert read_exactly(near, len(text)) == text


# -- real programs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.mark.usefixtures("evictions")
def test_curl_over_tls(far_listener: socket.socket, certificate: Path) -> None:
    body = os.urandom(2_000_000)

    def serve(far: socket.socket) -> bytes:
        request = read_block(far)
        far.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        with contextlib.suppress(OSError):
            far.recv(1)
        return request

    url = f"https://127.0.0.1:{far_listener.getsockname()[1]}/tls"
    with serving(far_listener, serve, certificate=certificate) as served:
        found = subprocess.run(["curl", "-sk", "--http1.1", url], capture_output=True, timeout=20)
    assert found.stdout == body
    assert b"traceparent" not in served[0]


@pytest.mark.usefixtures("evictions")
def test_openssl_s_client(far_listener: socket.socket, certificate: Path) -> None:
    data = os.urandom(300_000)

    def serve(far: socket.socket) -> bytes:
        got = read_exactly(far, len(data))
        far.sendall(got)
        return got

    address = f"127.0.0.1:{far_listener.getsockname()[1]}"
    with serving(far_listener, serve, certificate=certificate) as served:
        client = subprocess.run(
            ["openssl", "s_client", "-quiet", "-verify_quiet", "-connect", address],
            input=data,
            capture_output=True,
            timeout=20,
        )
    assert served == [data], client.stderr


@pytest.mark.usefixtures("evictions")
def test_ssh_client(far_listener: socket.socket) -> None:
    """OpenSSH's client sends its banner and key exchange unchanged."""

    def serve(far: socket.socket) -> tuple[bytes, bytes]:
        far.sendall(b"SSH-2.0-far\r\n")
        banner = b""
        while b"\r\n" not in banner:
            banner += far.recv(1)
        length = far.recv(4, socket.MSG_WAITALL)
        return banner, read_exactly(far, struct.unpack("!I", length)[0])

    port = str(far_listener.getsockname()[1])
    with serving(far_listener, serve) as served:
        subprocess.run(
            ["ssh", "-F", "none", "-o", "BatchMode=yes", "-p", port, "nobody@127.0.0.1", "true"],
            capture_output=True,
            timeout=20,
        )
    ((banner, packet),) = served
    assert banner.startswith(b"SSH-2.0-OpenSSH")
    assert packet[1] == 20, "SSH_MSG_KEXINIT"


# -- tunnels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 200 Connection established\r\n\r\n", b"HTTP/1.0 200 OK\r\nVia: x\r\n\r\n"],
)
def test_connect_tunnel(far_listener: socket.socket, answer: bytes) -> None:
    """Bytes in a proxy's tunnel are left alone, HTTP or not."""
    text = b"CONNECT far.example:443 HTTP/1.1\r\nHost: far.example:443\r\n\r\n"
    with pair(far_listener) as (near, far):
        near.sendall(text)
        assert read_block(far) == text
        far.sendall(answer)
        assert read_exactly(near, len(answer)) == answer
        for inner in (DECOY, b"\x16\x03\x01", DECOY * 9):
            near.sendall(inner)
            assert read_exactly(far, len(inner)) == inner
            far.sendall(OK)
            assert read_exactly(near, len(OK)) == OK
        exchange(near, far, 3_000_000)


def test_connect_refused_then_again(far_listener: socket.socket) -> None:
    """After 407 the connection goes on as HTTP, and opens a tunnel at the second try."""
    text = b"CONNECT far.example:443 HTTP/1.1\r\nHost: far.example:443\r\n\r\n"
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 4\r\n\r\nnope"
    with pair(far_listener) as (near, far):
        for answer in (refusal, b"HTTP/1.1 200 OK\r\n\r\n"):
            near.sendall(text)
            assert read_block(far) == text
            far.sendall(answer)
            assert read_exactly(near, len(answer)) == answer
        exchange(near, far, 100_000)


def test_websocket(world: World, far_listener: socket.socket) -> None:
    """The handshake is a request and gets its header. The frames behind it are left alone."""
    text = (
        b"GET /chat HTTP/1.1\r\nHost: far.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    answer = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )
    with pair(far_listener) as (near, far):
        near.sendall(text)
        assert inserted(text, read_block(far)).trace_id
        far.sendall(answer)
        assert read_exactly(near, len(answer)) == answer
        exchange(near, far, 3_000_000)
    (span,) = world[0].wait_spans(1, where=lambda s: s.path == "/chat")
    assert span.status == 101


def test_incoming_tunnels(world: World) -> None:
    """After a traced server has accepted CONNECT or an upgrade, later bytes are no requests."""
    traced, service, outside = world
    for text, answer in (
        (b"CONNECT in.example:1 HTTP/1.1\r\nHost: in.example\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"),
        (b"GET /in-up HTTP/1.1\r\nUpgrade: x\r\n\r\n", b"HTTP/1.1 101 Up\r\nUpgrade: x\r\n\r\n"),
    ):
        with outside.connect(service.front) as client, accept(service.front) as server:
            client.sendall(text)
            assert read_exactly(server, len(text)) == text
            server.sendall(answer)
            assert read_exactly(client, len(answer)) == answer
            for _ in range(5):
                client.sendall(DECOY.replace(b"decoy", b"in-tunnel"))
                server.recv(4096)
                server.sendall(OK)
                client.recv(4096)
    spans = traced.wait_spans(
        2, where=lambda s: s.kind == "SERVER" and not s.path.startswith("/tls")
    )
    assert sorted(s.status or 0 for s in spans) == [101, 200]


def test_incoming_bytes_that_are_not_http(world: World) -> None:
    _, service, outside = world
    for name, first in FIRST.items():
        with outside.connect(service.front) as client, accept(service.front) as server:
            client.sendall(first)
            assert read_exactly(server, len(first)) == first, name
            exchange(client, server, 200_000)


def test_nothing_was_inserted_here(far_listener: socket.socket) -> None:
    """The counterpart: on the same sockets HTTP does get the header."""
    with pair(far_listener) as (near, far):
        near.sendall(DECOY)
        assert inserted(DECOY, read_block(far)) != Context()
