"""Both ends of a TLS connection in the test process, which is a traced service meanwhile."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kernel.wire import SECONDS, accept, connect, listen


@contextmanager
def secured(certificate: Path) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """A client's end and the server's end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    trust = ssl.create_default_context(cafile=str(certificate))
    with listen() as listener, connect(listener, nodelay=True) as near, accept(listener) as far:
        ends: list[ssl.SSLSocket] = []

        def serve() -> None:
            ends.append(context.wrap_socket(far, server_side=True))

        thread = threading.Thread(target=serve)
        thread.start()
        client = trust.wrap_socket(near, server_hostname="127.0.0.1")
        thread.join(SECONDS)
        with client, ends[0] as server:
            yield client, server


def exchange(client: socket.socket, server: socket.socket, request: bytes, answer: bytes) -> None:
    """One request and its answer, each in one piece."""
    client.sendall(request)
    assert take(server, len(request)) == request
    server.sendall(answer)
    assert take(client, len(answer)) == answer


def take(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = connection.recv(size - len(found))
        if not more:
            raise ConnectionError(f"closed {size - len(found)} bytes before the end")
        found += more
    return found
