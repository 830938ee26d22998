"""What is kept of processes with a known runtime, which the test process is said to be.

Does the entry of a process in tl_runtimes hold for what the process executes now? A word of its
memory tells that. Here it is in a page of its own, which can be taken away: a BPF program cannot
read a page that is swapped out.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fixtures import needs
from tests.fixtures.service import Service, World
from tests.fixtures.sockets import accept, read_exactly
from tests.fixtures.waiting import poll
from tests.fixtures.wire import OK, PARENT, TRACE, head
from throughline.bpf import abi, libbpf, maps
from throughline.bpf.runtimes import Entry, Runtimes
from throughline.host import executed

WORD = 0x1122334455667788
HOLDS, UNREADABLE = "root_node_unknown", "root_runtime_unreadable"
REQUEST = head(f"traceparent: 00-{TRACE}-{PARENT}-01")


@dataclass(slots=True)
class Page:
    """A page with the word."""

    memory: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, mmap.PAGESIZE))

    def __post_init__(self) -> None:
        self.memory[:8] = struct.pack("<Q", WORD)

    @property
    def address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def protect(self, protection: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(self.address), mmap.PAGESIZE, protection):
            raise OSError(ctypes.get_errno(), "mprotect")


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page()
    yield made
    made.protect(mmap.PROT_READ | mmap.PROT_WRITE)


@contextlib.contextmanager
def pinned(world: World, name: str) -> Iterator[int]:
    table = libbpf.get_pinned(next(world[0].bpffs.glob(f"abi*/{name}")))
    try:
        yield table
    finally:
        os.close(table)


@contextlib.contextmanager
def told(
    world: World,
    kind: abi.RuntimeKind,
    *,
    check_at: int = 0,
    check: int = 0,
    flags: int = 0,
) -> Iterator[None]:
    """The test process has an entry."""
    born = int(executed.stat(os.getpid(), proc=Path("/proc"))[19])
    with pinned(world, "tl_runtimes") as table:
        runtimes = Runtimes(table)
        runtimes.tell(os.getpid(), Entry(kind, 0, 0, born, check_at, check, flags))
        try:
            yield
        finally:
            runtimes.forget(os.getpid())


def known(world: World, page: Page, *, word: int = WORD) -> contextlib.AbstractContextManager[None]:
    """It is Node.js with the preload, of which no thread tells anything."""
    return told(world, abi.RuntimeKind.RUNTIME_NODE, check_at=page.address, check=word)


def counted(world: World, service: Service) -> dict[str, int]:
    """Which counters of these grow with a request and its call, which is of another trace."""
    before = world[0].counters()
    assert service.serve([REQUEST], "/counted").trace_id != TRACE
    after = world[0].counters()
    return {
        name: after.get(name, 0) - before.get(name, 0)
        for name in (HOLDS, UNREADABLE)
        if after.get(name, 0) > before.get(name, 0)
    }


def test_the_word_is_there(world: World, page: Page) -> None:
    with known(world, page):
        assert counted(world, world[1]) == {HOLDS: 1}


def test_the_word_is_another_one(world: World, page: Page) -> None:
    """The process executes another program than the entry was made for: threads are evidence."""
    with known(world, page, word=WORD + 1):
        assert world[1].serve([REQUEST], "/other").trace_id == TRACE


def test_the_word_cannot_be_read(world: World, page: Page) -> None:
    """The runtime may be a known one: threads are no evidence."""
    with known(world, page):
        page.protect(0)
        assert counted(world, world[1]) == {UNREADABLE: 1}


def test_the_word_cannot_be_read_any_more(world: World, page: Page) -> None:
    """It was read once: the process has executed no other program since."""
    with known(world, page):
        world[1].serve([REQUEST], "/before")
        page.protect(0)
        assert counted(world, world[1]) == {HOLDS: 1}


# -- what connections serve ------------------------------------------------------------------------


def test_a_connection_that_has_ended_takes_no_room(world: World) -> None:
    """A client with many short connections does not push out the entries of others."""
    service = world[1]
    with told(world, abi.RuntimeKind.RUNTIME_HAPROXY), pinned(world, "tl_serving") as table:
        with service.outside.connect(service.front) as client, accept(service.front) as server:
            service.exchange(client, server, [REQUEST], "/kept")
            assert len(list(maps.keys(table, 8))) == 1
            for number in range(23):
                service.serve([REQUEST], f"/short/{number}")
            service.exchange(client, server, [REQUEST], "/again")
        poll(lambda: not list(maps.keys(table, 8)), seconds=5, every=0.02)
        assert not list(maps.keys(table, 8))


def test_a_unix_connection_takes_no_room_once_it_is_answered(world: World) -> None:
    needs.program("tl_unix_sends")
    with told(world, abi.RuntimeKind.RUNTIME_HAPROXY), pinned(world, "tl_serving") as table:
        client, server = socket.socketpair(socket.AF_UNIX)
        with client, server:
            client.sendall(REQUEST)
            assert read_exactly(server, len(REQUEST)) == REQUEST
            assert len(list(maps.keys(table, 8))) == 1
            server.sendall(OK)
            assert read_exactly(client, len(OK)) == OK
            assert not list(maps.keys(table, 8))


def test_puma_works_no_more_for_a_request_that_another_thread_answers(world: World) -> None:
    """rack.hijack, on a Unix socket: Puma's thread goes on with something else."""
    needs.program("tl_unix_sends")
    takes = abi.RuntimeFlags.RUNTIME_TAKES
    client, server = socket.socketpair(socket.AF_UNIX)
    taken, answered = threading.Event(), threading.Event()
    traces: list[str] = []

    def work() -> None:
        read_exactly(server, len(REQUEST))
        with contextlib.suppress(OSError):  # the kernel tells no such state of a Unix socket
            server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO)
        traces.append(world[1].call("/taken").trace_id)
        taken.set()
        answered.wait(20)
        traces.append(world[1].call("/later").trace_id)

    with told(world, abi.RuntimeKind.RUNTIME_RUBY, flags=takes), client, server:
        client.sendall(REQUEST)
        thread = threading.Thread(target=work)
        thread.start()
        assert taken.wait(20)
        server.sendall(OK[:-1])
        answered.set()
        thread.join(20)
        server.sendall(OK[-1:])
    assert traces[0] == TRACE
    assert traces[1] != TRACE
