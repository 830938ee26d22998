"""An answer that the service has written is an answer, also while the peer takes no more bytes.

One thread serves two connections in turn. The client of the first reads nothing, until an answer
that the service has written stays in its socket: the thread goes on with the other connection.
That is no sign that the thread serves several requests at a time.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import sys
import termios
from collections.abc import Iterator
from itertools import count

import pytest

from tests.fixtures import java, process
from tests.fixtures.paths import SERVICES
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.traced import Traced
from tests.fixtures.waiting import until

ANSWER = len("HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n") + 4000  # bytes
SMALL = 32_768  # bytes of a receive buffer, which some answers fill
EARNED = 23  # rounds; more than any program needs to earn trust
ROUNDS = 5


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with Traced({"propagation": {"parents": "proven"}}) as found:
        yield found


@pytest.fixture(scope="module")
def onward() -> Iterator[int]:
    port = free_port()
    with process.running([sys.executable, str(SERVICES / "recorder.py"), str(port), os.devnull]):
        wait_port(port)
        yield port


class Pair:
    """The two connections, of which the first has a small receive buffer."""

    def __init__(self, port: int) -> None:
        self._numbers = count()
        self.calls = 0
        self.held, self.other = socket.socket(), socket.socket()
        self.held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        for one in (self.held, self.other):
            one.settimeout(20)
        until(
            lambda: self.held.connect_ex(("127.0.0.1", port)) == 0,
            seconds=30,
            every=0.1,
            otherwise=lambda: "the service does not listen",
        )
        self.other.connect(("127.0.0.1", port))

    def ask(self, connection: socket.socket) -> None:
        connection.sendall(f"GET /turn/{next(self._numbers)} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        self.calls += 1

    def read(self, connection: socket.socket, answers: int = 1) -> None:
        rest = answers * ANSWER
        while rest:
            piece = connection.recv(rest)
            assert piece, "the service has closed the connection"
            rest -= len(piece)

    def round(self) -> None:
        """A request on each connection."""
        for connection in (self.held, self.other):
            self.ask(connection)
            self.read(connection)

    def hold(self) -> int:
        """Asks until an answer to the first connection stays in the service's socket.

        Returns how many of its answers were not read.
        """
        for unread in range(1, 40):
            before = self._waiting()
            self.ask(self.held)
            self.ask(self.other)
            self.read(self.other)  # the service has written the answer before
            if self._waiting() == before:
                return unread
        raise AssertionError("each answer has left at once")

    def _waiting(self) -> int:
        """The bytes that have come to the first connection and were not read."""
        found = fcntl.ioctl(self.held, termios.FIONREAD, bytes(4))
        return int(struct.unpack("i", found)[0])

    def close(self) -> None:
        self.held.close()
        self.other.close()


def _run(traced: Traced, service: str, pair: Pair) -> None:
    """All calls since trust was earned have their parents."""
    for _ in range(EARNED):
        pair.round()
    first = pair.calls
    unread = pair.hold()
    pair.read(pair.held, unread)
    for _ in range(ROUNDS):
        pair.round()
    pair.close()
    spans = traced.wait_spans(
        2 * pair.calls, where=lambda span: span.service == service and span.path[:6] == "/turn/"
    )
    wanted = {f"/turn/{number}" for number in range(first, pair.calls)}
    spans = [span for span in spans if span.path in wanted]
    found = java.judge(spans, service, "turn", calls=len(wanted))
    assert found == {"right": len(wanted)}, (found, unread)


def test_a_jvm(traced: Traced, onward: int) -> None:
    if shutil.which("javac") is None:
        pytest.skip("no Java compiler is installed")
    port = free_port()
    before = traced.counters()
    source = str(SERVICES / "Turns.java")
    flags = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    traced.spawn("turns-java", ["java", *flags, source, str(port), str(onward)])
    pair = Pair(port)
    java.wait_followed(traced)
    _run(traced, "turns-java", pair)
    after = traced.counters()
    assert after.get("java_contradicted", 0) == before.get("java_contradicted", 0)


def test_a_program_with_one_thread(traced: Traced, onward: int) -> None:
    port = free_port()
    command = [sys.executable, str(SERVICES / "turns.py"), str(port), str(onward)]
    traced.spawn("turns", command)
    _run(traced, "turns", Pair(port))
