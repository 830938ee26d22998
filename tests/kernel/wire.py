"""Raw peers on loopback: sockets whose cgroup the test chooses, and what came out at the far side.

A socket belongs to the cgroup of the process that made it. The test process itself lives in a
traced cgroup (`Traced.inside`); sockets of the world outside are made by a helper process that was
forked before and hands them over as descriptors. So one thread can play client, service and far
side in turn, and nothing has to be waited for.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from tests.kernel.traced import Traced

SECONDS = 10.0
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
TRACEPARENT = re.compile(rb"traceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-(0[0-3])\r\n")
TRACESTATE = re.compile(rb"tracestate: ([!-~](?:[ -~]{0,510}[!-~])?)\r\n")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Outside:
    """Makes sockets in the cgroup that the test process had when this object was made."""

    def __init__(self) -> None:
        self._channel, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if not self._pid:
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                self._channel.close()
                _serve(far)
            finally:
                os._exit(0)
        far.close()

    def __enter__(self) -> Outside:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()
        os.waitpid(self._pid, 0)

    def make(self, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
        """A TCP socket that is neither bound nor connected."""
        self._channel.send(struct.pack("<i", family))
        _, descriptors, _, _ = socket.recv_fds(self._channel, 16, 1)
        made = socket.socket(fileno=descriptors[0])
        made.settimeout(SECONDS)
        return made

    def listen(self, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
        """Listens on a free port of loopback."""
        return _listen(self.make(family), family)

    def connect(self, listener: socket.socket) -> socket.socket:
        """A client connection without Nagle: each send is a segment of its own."""
        made = self.make(listener.family)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.connect(listener.getsockname()[:2])
        return made


def _serve(channel: socket.socket) -> None:
    while wanted := channel.recv(16):
        with socket.socket(struct.unpack("<i", wanted)[0], socket.SOCK_STREAM) as made:
            socket.send_fds(channel, [b"s"], [made.fileno()])


def _listen(made: socket.socket, family: socket.AddressFamily) -> socket.socket:
    made.bind((LOOPBACK[family], 0))
    made.listen(256)
    return made


def listen(family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """Listens in the cgroup that the process has now."""
    made = socket.socket(family, socket.SOCK_STREAM)
    made.settimeout(SECONDS)
    return _listen(made, family)


def connect(listener: socket.socket, *, nodelay: bool = False) -> socket.socket:
    """Connects in the cgroup that the process has now."""
    made = socket.create_connection(listener.getsockname()[:2], timeout=SECONDS)
    if nodelay:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def accept(listener: socket.socket) -> socket.socket:
    made, _ = listener.accept()
    made.settimeout(SECONDS)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


@contextmanager
def pair(listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A traced client connection to `listener` and its far end."""
    with connect(listener) as near, accept(listener) as far:
        yield near, far


def read_block(connection: socket.socket) -> bytes:
    """Reads up to and with the empty line, and what came along with it."""
    found = b""
    while b"\r\n\r\n" not in found and b"\n\n" not in found:
        more = connection.recv(65536)
        if not more:
            raise ConnectionError(f"closed inside a header block: {found[-200:]!r}")
        found += more
    return found


def read_all(connection: socket.socket) -> bytes:
    """Everything until the peer stops sending."""
    parts = []
    while more := connection.recv(1 << 20):
        parts.append(more)
    return b"".join(parts)


def read_exactly(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        more = connection.recv(min(size, 1 << 20))
        if not more:
            raise ConnectionError(f"closed {size} bytes before the end")
        parts.append(more)
        size -= len(more)
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Context:
    """The trace context that a request carried on the wire; ids in hex, "" when there is none."""

    trace_id: str = ""
    parent_id: str = ""
    flags: str = ""
    tracestate: str = ""


def context(block: bytes) -> Context:
    """The one context of a header block. Fails when there are two."""
    found = TRACEPARENT.findall(block)
    assert len(found) <= 1, block
    if not found:
        return Context()
    states = TRACESTATE.findall(block)
    assert len(states) <= 1, block
    trace_id, parent_id, flags = (part.decode() for part in found[0])
    return Context(trace_id, parent_id, flags, states[0].decode() if states else "")


def inserted(sent: bytes, received: bytes) -> Context:
    """What was inserted into exactly one place: in front of an empty line of `sent`.

    Fails when anything else differs. An untouched request gives an empty context.
    """
    if sent == received:
        return Context()
    at = next(i for i, (a, b) in enumerate(zip(sent, received, strict=False)) if a != b)
    # what was inserted may begin with bytes that stood there too
    at = sent.rfind(b"\n", 0, at) + 1
    added = len(received) - len(sent)
    line = received[at : at + added]
    assert received[:at] == sent[:at], (sent[:at][-80:], received[:at][-80:])
    assert received[at + added :] == sent[at:], (added, sent[at:][:80], received[at:][:160])
    assert re.fullmatch(TRACEPARENT.pattern + rb"(?:%s)?" % TRACESTATE.pattern, line), line
    assert sent[at : at + 1] == b"\n" or sent[at : at + 2] == b"\r\n", (at, sent[at:][:80])
    return context(line)


@dataclass(slots=True)
class Service:
    """A traced service in one thread: it reads a request, calls on, and answers.

    The call goes to a far side outside of the traced cgroup, which tells what it received.
    """

    outside: Outside
    front: socket.socket
    _back: socket.socket
    _near: socket.socket
    _far: socket.socket

    @classmethod
    def make(cls, outside: Outside, family: socket.AddressFamily = socket.AF_INET) -> Service:
        """In the cgroup that the process has now."""
        back = outside.listen()
        near = connect(back)
        return cls(outside, listen(family), back, near, accept(back))

    def close(self) -> None:
        for one in (self._near, self._far, self.front, self._back):
            one.close()

    def call(self, path: str) -> Context:
        """One call of the current thread, on a connection that is kept."""
        request = f"GET {path} HTTP/1.1\r\nHost: far.example\r\n\r\n".encode()
        self._near.sendall(request)
        received = read_block(self._far)
        self._far.sendall(OK)
        read_exactly(self._near, len(OK))
        found = inserted(request, received)
        assert found.trace_id, received
        return found

    def serve(self, pieces: Iterable[bytes], path: str) -> Context:
        """Serves one request that comes in pieces on a connection of its own."""
        with self.outside.connect(self.front) as client, accept(self.front) as server:
            return self.exchange(client, server, pieces, path)

    def exchange(
        self, client: socket.socket, server: socket.socket, pieces: Iterable[bytes], path: str
    ) -> Context:
        """Serves one request on a connection that is there; the header block must be complete."""
        sent = b""
        for piece in pieces:
            client.sendall(piece)
            sent += piece
        assert read_exactly(server, len(sent)) == sent
        found = self.call(path)
        server.sendall(OK)
        assert read_exactly(client, len(OK)) == OK
        return found


@contextmanager
def traced_service(
    config: dict[str, object] | None = None,
) -> Iterator[tuple[Traced, Service, Outside]]:
    """The agent, and the test process as a service in one of its cgroups."""
    with Outside() as outside, Traced(config) as traced, traced.inside("service"):
        service = Service.make(outside)
        try:
            yield traced, service, outside
        finally:
            service.close()
