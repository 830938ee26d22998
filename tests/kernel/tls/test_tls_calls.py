"""Calls of OpenSSL as libraries make them: repeated with more bytes, and one inside of another."""

from __future__ import annotations

import http.client
import os
import select
import socket
import ssl
import subprocess
import sys
import threading

import pytest

from tests.fixtures.certificate import make_certificate
from tests.fixtures.operated import Operated
from tests.fixtures.paths import SERVICES
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.secure import LIBRARY, Secure
from tests.fixtures.sockets import accept, listen, read_exactly
from tests.fixtures.tls_pair import exchange, secured, wait_probed
from tests.fixtures.wire import OK, head

COUNT = 5


def send_growing(near: ssl.SSLSocket, text: bytes, more: int) -> int:
    """Sends in pieces, and repeats failed writes with `more` bytes. Returns how often."""
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 30_000)
    near.setblocking(False)
    at, size, again = 0, 16_384, 0
    while at < len(text):
        try:
            at += near.send(text[at : at + size])
            size = 16_384
        except ssl.SSLWantWriteError:
            again += 1
            size += more
            select.select([], [near], [], 0.1)
    near.settimeout(10)
    return again


@pytest.mark.parametrize("more", [0, 1, 5000])
def test_a_write_that_is_repeated_with_more_bytes(traced: Operated, more: int) -> None:
    """As SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER and SSL_MODE_ENABLE_PARTIAL_WRITE allow it."""
    certificate = make_certificate(traced.directory)
    body = b"y" * 3_000_000
    lines = [
        head(f"Content-Length: {len(body)}", method="PUT", target="/again/0"),
        f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode(),
    ]
    with traced.inside("service"), secured(certificate) as (client, server):
        wait_probed(traced)
        for sends, reads, text in ((client, server, lines[0]), (server, client, lines[1])):
            reads.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 30_000)
            got: list[bytes] = []

            def read(
                reads: ssl.SSLSocket = reads,
                size: int = len(text) + len(body),
                got: list[bytes] = got,
            ) -> None:
                got.append(read_exactly(reads, size))

            thread = threading.Timer(0.2, read)  # the buffers are full by then
            thread.start()
            again = send_growing(sends, text + body, more)
            thread.join(20)
            assert again > 1, "no write was repeated: the test is none"
            assert got == [text + body]
        for number in range(1, COUNT):
            exchange(client, server, head(target=f"/again/{number}"), OK)
        spans = traced.wait_spans(2 * COUNT, seconds=5)
    assert sorted(
        (span.kind, span.path, span.attributes.get("http.response.status_code")) for span in spans
    ) == sorted(
        (kind, f"/again/{number}", 200) for kind in ("CLIENT", "SERVER") for number in range(COUNT)
    )
    assert "tls_lost" not in traced.counters()


def test_tls_inside_of_tls(traced: Operated) -> None:
    """curl reads from the server by SSL_read, which reads from the proxy by SSL_read."""
    secure = Secure(traced)
    server = secure.python("server")
    port = free_port()
    environment = {**os.environ, "CERTIFICATE": str(secure.certificate)}
    proxy = subprocess.Popen(
        [sys.executable, str(SERVICES / "tls_proxy.py"), str(port)], env=environment
    )
    try:
        wait_port(port)
        secure.wait_found(LIBRARY)
        urls = [f"https://127.0.0.1:{server}/nested/{number}" for number in range(COUNT)]
        trust = ["--cacert", str(secure.certificate), "--proxy-cacert", str(secure.certificate)]
        run = ["curl", "-sS", "--http1.1", *trust, "--proxy", f"https://127.0.0.1:{port}", *urls]
        curl = traced.spawn("curl", run, stdout=subprocess.DEVNULL)
        assert curl.wait(20) == 0
    finally:
        proxy.terminate()
        proxy.wait(5)
    spans = traced.wait_spans(COUNT, where=lambda span: span.service == "curl", seconds=5)
    calls = [
        (span.path, span.attributes.get("http.response.status_code"), span.error)
        for span in spans
        if span.kind == "CLIENT" and span.path.startswith("/nested/")
    ]
    assert sorted(calls) == [(f"/nested/{number}", 200, False) for number in range(COUNT)]


def test_an_answer_to_a_call_that_was_not_seen_contradicts_nothing(traced: Operated) -> None:
    """While an agent's probes are detached, the one of SSL_write may go before that of SSL_read."""
    secure = Secure(traced)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(secure.certificate)
    port = free_port()
    environment = {**os.environ, "CERTIFICATE": str(secure.certificate)}
    with listen() as listener:
        command = [sys.executable, str(SERVICES / "kept_tls.py"), str(port)]
        traced.spawn("kept", [*command, str(listener.getsockname()[1])], env=environment)
        with accept(listener) as plain, context.wrap_socket(plain, server_side=True) as far:
            wait_port(port)
            secure.wait_found(LIBRARY)
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            for number in range(2 * COUNT):
                path = f"/{'read' if number % 2 else 'call'}/{number}"
                client.request("GET", path)
                if number % 2 == 0:
                    far.recv(65536)
                far.sendall(OK)
                answer = client.getresponse()
                assert answer.read() == b"" and answer.status == 204
            client.close()
            spans = traced.wait_spans(3 * COUNT, seconds=5)
    served = {span.path: span.span_id for span in spans if span.kind == "SERVER"}
    calls = [span for span in spans if span.kind == "CLIENT"]
    assert [span.parent_span_id for span in calls] == [served[span.path] for span in calls]
    assert len(calls) == COUNT
    assert not [name for name, value in traced.counters().items() if value and "contradict" in name]
