"""A socket leaves the sockhash while bytes that sk_msg has parsed wait in it: they are parsed once.

nginx sends a request with its body in one call. Its peer takes little at a time, so that most of it
leaves after the first acknowledgement, with which the socket leaves the sockhash (decision 0002).
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.fixtures import nginx
from tests.fixtures.ports import free_port
from tests.fixtures.traced import Traced

REQUESTS = 7
BODY = b"x" * 60_000
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
WINDOW = 4096


def _serve(connection: socket.socket, targets: list[str]) -> None:
    """Answers the requests of a connection. `targets`: what they ask for."""
    with connection, connection.makefile("rb") as stream:
        while line := stream.readline():
            targets.append(line.split()[1].decode())
            left = 0
            while (field := stream.readline()) not in (b"\r\n", b""):
                name, _, value = field.partition(b":")
                if name.lower() == b"content-length":
                    left = int(value)
            stream.read(left)
            connection.sendall(ANSWER)


@pytest.fixture
def far() -> Iterator[tuple[int, list[list[str]]]]:
    """A server with a small window, and what was asked for on each of its connections."""
    connections: list[list[str]] = []
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connections.append([])
                threading.Thread(
                    target=_serve, args=(connection, connections[-1]), daemon=True
                ).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], connections
        listener.shutdown(socket.SHUT_RDWR)


def test_what_waits_in_the_socket_is_parsed_once(far: tuple[int, list[list[str]]]) -> None:
    origin, connections = far
    port = free_port()
    with Traced() as traced:
        nginx.start(
            traced,
            "front",
            f"client_body_buffer_size 128k;"
            f"upstream kept {{ server 127.0.0.1:{origin}; keepalive 4; }}"
            f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://kept;"
            f' proxy_http_version 1.1; proxy_set_header Connection ""; }} }}',
            port=port,
            workers=1,
        )
        before = traced.counters()
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for number in range(REQUESTS):
            client.request("POST", f"/{number}", BODY)
            answer = client.getresponse()
            assert (answer.status, answer.read()) == (200, b"ok")
        client.close()
        spans = traced.wait_spans(2 * REQUESTS)
        grown = {
            name: count - before.get(name, 0)
            for name, count in traced.counters().items()
            if name.startswith(("lost_", "skip_malformed"))
        }
    assert connections == [[f"/{number}" for number in range(REQUESTS)]]
    calls = sorted(span.path for span in spans if span.kind == "CLIENT")
    assert calls == [f"/{number}" for number in range(REQUESTS)], grown
    assert not any(grown.values()), grown
