"""Programs that we did not write, traced: nginx as a proxy, curl and Python's http.client."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import threading

import pytest

from tests.fixtures import nginx as nginx_service
from tests.fixtures.ports import free_port
from tests.fixtures.service import World
from tests.fixtures.sockets import accept, read_block, read_exactly
from tests.fixtures.wire import OK, head

COUNT = 23


@pytest.fixture(scope="module")
def nginx(world: World) -> int:
    """nginx as a traced proxy to a test's own far side; returns its port."""
    port = free_port()
    server = f"""
        client_max_body_size 0;
        proxy_request_buffering off;
        server {{
            listen 127.0.0.1:{port};
            location ~ ^/to/(?<port>[0-9]+)/ {{
                proxy_pass http://127.0.0.1:$port;
                proxy_http_version 1.1;
            }}
        }}"""
    nginx_service.start(world[0], "nginx", server, port=port, workers=1)
    return port


def test_nginx_passes_bodies_on(world: World, far_listener: socket.socket, nginx: int) -> None:
    """A 5 MB body through a non-blocking proxy, and a 5 MB answer back."""
    traced = world[0]
    body = head(target="/decoy") * 120_000
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
        lines, _, rest = block.partition(b"\r\n\r\n")
        assert lines.count(b"traceparent: 00-") == 1
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


def test_curl(world: World, far_listener: socket.socket) -> None:
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
            lines, _, rest = got.partition(b"\r\n\r\n")
            assert lines.count(b"\r\ntraceparent: 00-") == 1
            if b"100-continue" in lines:
                far.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            if b"chunked" in lines:
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
def test_http_client(world: World, far_listener: socket.socket, own: str) -> None:
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
