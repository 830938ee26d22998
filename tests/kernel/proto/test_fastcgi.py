"""FastCGI on a Unix socket, in every way of cutting its bytes: the spans say what was sent.

The seed is printed; THROUGHLINE_FUZZ_SEED sets another.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Iterable

import pytest

from tests.fixtures import needs
from tests.fixtures.fastcgi import BEGIN, END, PARAMS, STDERR, STDIN, STDOUT, pair, record, stream
from tests.fixtures.traced import Traced

SEED = int(os.environ.get("THROUGHLINE_FUZZ_SEED", "20250607"))
REQUESTS = 53
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
NAMES = [
    b"QUERY_STRING",
    b"HTTP_ACCEPT",
    b"REMOTE_ADDR",
    b"X" * 200,
    b"HTTP_HOSTS",
    b"REQUEST_URIS",
]


@pytest.fixture(autouse=True)
def _needed() -> None:
    needs.program("tl_unix_sends")


def cut(data: bytes, chance: random.Random) -> Iterable[bytes]:
    """The pieces in which the bytes are written."""
    if chance.random() < 0.4:
        yield data
        return
    while data:
        size = chance.choice([1, 3, 8, 9, 17, 128, 129, 2000, 50000])
        yield data[:size]
        data = data[size:]


def write(end: socket.socket, other: socket.socket, data: bytes, chance: random.Random) -> None:
    """Writes pieces, by different system calls, and reads them at the other end."""
    for piece in cut(data, chance):
        half = len(piece) // 2
        match chance.randrange(3):
            case 0:
                end.sendall(piece)
            case 1:
                assert os.writev(end.fileno(), [piece[:half], b"", piece[half:]]) == len(piece)
            case _:
                assert end.sendmsg([piece[:half], piece[half:]]) == len(piece)
        left = len(piece)
        while left:
            left -= len(other.recv(left))


def test_spans_say_what_was_sent() -> None:
    print("seed", SEED)
    chance = random.Random(SEED)
    expected = {}
    with Traced() as traced, traced.inside("web"):
        client, server = socket.socketpair()
        with client, server:
            for end in client, server:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            for number in range(REQUESTS):
                method = chance.choice([b"GET", b"POST", b"OPTIONS"])
                path = f"/{number}" + "x" * chance.choice([0, 0, 200])
                status = chance.choice([200, 200, 404, 500, 302])
                named = [
                    (b"REQUEST_METHOD", method),
                    (b"REQUEST_URI", path.encode()),
                    (b"HTTP_HOST", b"shop.example"),
                    (b"SERVER_PROTOCOL", b"HTTP/1.1"),
                ]
                adopted = chance.random() < 0.3
                if adopted:
                    named.append((b"HTTP_TRACEPARENT", f"00-{TRACE}-{PARENT}-01".encode()))
                    named.append((b"HTTP_TRACESTATE", b"a=1,b=2"))
                for _ in range(chance.randrange(40)):
                    size = chance.choice([0, 1, 30, 130, 3000])
                    named.append((chance.choice(NAMES), b"v" * size))
                chance.shuffle(named)
                body = chance.randbytes(chance.choice([0, 0, 1, 5000, 90000]))
                sent = record(BEGIN, struct.pack(">HB5x", 1, 1), padding=chance.choice([0, 5]))
                sent += stream(PARAMS, b"".join(pair(*one) for one in named), chance)
                sent += stream(STDIN, body, chance)
                write(client, server, sent, chance)
                lines = [b"Content-Type: text/plain\r\n", b"X-Status: 999\r\n"]
                if status != 200:
                    lines.append(b"Status: %d Whatever\r\n" % status)
                chance.shuffle(lines)
                answer = b"".join(lines) + b"\r\n" + chance.randbytes(chance.choice([0, 9, 40000]))
                got = record(STDERR, b"a warning") if chance.random() < 0.2 else b""
                got += stream(STDOUT, answer, chance)
                got += record(END, bytes(8), padding=chance.choice([0, 0, 8]))
                write(server, client, got, chance)
                expected[path] = (method.decode(), status, adopted)
        spans = traced.wait_spans(2 * REQUESTS)
    for kind in ("SERVER", "CLIENT"):
        found = {s.path: (s.method, s.status, s.trace_id == TRACE) for s in spans if s.kind == kind}
        assert found == expected
    for span in spans:
        if span.kind == "SERVER":
            assert span.evidence == "unix"
            assert span.parent_span_id in {s.span_id for s in spans if s.kind == "CLIENT"}
        elif span.trace_id == TRACE:
            assert span.parent_span_id == PARENT


def test_a_second_request_before_the_first_is_answered_ends_it() -> None:
    """Multiplexed: for which of them the service works is not known."""
    request = record(BEGIN, struct.pack(">HB5x", 1, 1))
    request += record(PARAMS, pair(b"REQUEST_METHOD", b"GET") + pair(b"REQUEST_URI", b"/one"))
    request += record(PARAMS, b"") + record(STDIN, b"")
    with Traced() as traced, traced.inside("web"):
        client, server = socket.socketpair()
        with client, server:
            for _ in range(2):
                client.sendall(request)
                server.recv(1000)
            server.sendall(stream(STDOUT, b"\r\n", random.Random(1)) + record(END, bytes(8)))
            client.recv(1000)
        assert traced.wait_counter("skip_pipelined", 1) == 1
