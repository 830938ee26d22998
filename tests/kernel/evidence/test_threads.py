"""The state of a thread is not used for a later thread with its number, nor for another request.

Also: system calls of 32-bit programs, and two processors that find the same request at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fixtures.packets import THREAD
from tests.fixtures.service import Service, World
from tests.fixtures.sockets import accept, connect, read_block, read_exactly
from tests.fixtures.traced import Traced
from tests.fixtures.wire import OK, PARENT, TRACE, Context, head, inserted, send_alone
from throughline.bpf import abi, libbpf, maps

STATE = "kept=1"
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


@pytest.fixture
def service(world: World) -> Service:
    world[1].call("/warm")  # connect() is evidence for the first call of a connection
    return world[1]


@contextlib.contextmanager
def asked(service: Service) -> Iterator[socket.socket]:
    """A connection with an unread request of TRACE, which is answered at the end."""
    with service.outside.connect(service.front) as client, accept(service.front) as server:
        client.sendall(REQUEST)
        yield server
        server.sendall(OK)
        read_exactly(client, len(OK))


REQUEST = head(f"traceparent: 00-{TRACE}-{PARENT}-01", f"tracestate: {STATE}")


def in_thread(run: Callable[[], None]) -> None:
    """Runs a function in a new thread, for which the maps have no entry."""
    failed: list[BaseException] = []

    def body() -> None:
        try:
            run()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(20)
    if failed:
        raise failed[0]


@contextlib.contextmanager
def pinned(traced: Traced, name: str) -> Iterator[int]:
    table = libbpf.get_pinned(next(traced.bpffs.glob(f"abi*/{name}")))
    try:
        yield table
    finally:
        os.close(table)


# -- thread ids are reused -------------------------------------------------------------------------


def test_a_thread_inherits_nothing_of_the_one_whose_number_it_has(service: Service) -> None:
    if not LAST_PID.exists():
        pytest.skip(f"{LAST_PID} is missing: no number can be had again at will")
    numbers: list[int] = []
    found: list[Context] = []

    def again() -> None:
        if threading.get_native_id() == numbers[0]:
            found.append(service.call("/reused"))

    with asked(service) as server:

        def read() -> None:
            numbers.append(threading.get_native_id())
            read_exactly(server, len(REQUEST))

        in_thread(read)
        time.sleep(0.02)  # the kernel tells threads with one id apart by their start, in 1/100 s
        for _ in range(100):
            LAST_PID.write_text(str(numbers[0] - 1))
            in_thread(again)
            if found:
                break
    assert found, "another process has taken the number each time"
    assert found[0].trace_id != TRACE


def test_a_process_is_not_taken_for_one_that_asked_how_much_there_is_to_read(
    world: World,
) -> None:
    """Where FIONREAD is right, no program uses this map."""
    traced, _, outside = world
    with pinned(traced, "tl_fionread") as table, outside.listen() as listener:
        key = struct.pack("<I", os.getpid())
        maps.update(table, key, struct.pack("<I", 1))  # that process began long before this one
        try:
            with connect(listener, nodelay=True) as near, accept(listener) as far:
                for number in range(5):
                    text = head(target=f"/asked/{number}")
                    near.sendall(text)
                    assert inserted(text, read_block(far)).trace_id, number
                    far.sendall(OK)
                    read_exactly(near, len(OK))
        finally:
            maps.delete(table, key)


# -- an element holds another request --------------------------------------------------------------


@contextlib.contextmanager
def replaced(traced: Traced) -> Iterator[None]:
    """The element of the request of TRACE holds another request, as may happen after a look-up."""
    with pinned(traced, "tl_requests") as table:
        for key in list(maps.keys(table, 8)):
            value = maps.lookup(table, key, abi.REQUEST.size)
            if value is None:
                continue
            request = abi.Request(*abi.REQUEST.unpack(value))
            if request.trace_id.hex() == TRACE:
                other = request._replace(span_id=os.urandom(8))
                maps.update(table, key, abi.REQUEST.pack(*other))
                yield
                maps.update(table, key, value)
                return
    raise AssertionError("the request is not kept")


def test_the_ids_of_another_request_are_not_taken(world: World, service: Service) -> None:
    def run() -> None:
        with asked(service) as server:
            read_exactly(server, len(REQUEST))
            assert service.call("/own").trace_id == TRACE
            with replaced(world[0]):
                assert service.call("/other").trace_id != TRACE
            assert service.call("/own").trace_id == TRACE

    in_thread(run)


def test_nor_by_the_request_that_made_the_connection(world: World, service: Service) -> None:
    traced, _, outside = world

    def run() -> None:
        with (
            outside.listen() as listener,
            asked(service) as server,
        ):
            read_exactly(server, len(REQUEST))
            assert send_alone(listener, [head()]).trace_id == TRACE
            with connect(listener) as near, accept(listener) as far, replaced(traced):
                near.sendall(text := head())
                assert inserted(text, read_block(far)).trace_id != TRACE

    in_thread(run)


def test_nor_its_tracestate(world: World, service: Service) -> None:
    def run() -> None:
        with asked(service) as server, pinned(world[0], "tl_tracestates") as table:
            read_exactly(server, len(REQUEST))
            assert service.call("/own").tracestate == STATE
            (key,) = maps.keys(table, 8)
            maps.update(table, key, os.urandom(8) + STATE.encode() + bytes(512))
            found = service.call("/other")
            assert (found.trace_id, found.tracestate) == (TRACE, "")

    in_thread(run)


# -- 32-bit system calls ---------------------------------------------------------------------------

# int call(int number, int ebx, int ecx, int edx, int esi), of which all are 32-bit
_INT_80 = bytes.fromhex("53 89f8 89f3 4189c9 89d1 4489ca 4489c6 31ff cd80 5b c3")
I386_GETPID, I386_POLL, I386_LLISTXATTR, I386_EPOLL_WAIT = 20, 168, 232, 256


@pytest.fixture(scope="module")
def call32() -> Iterator[Callable[..., int]]:
    """Makes a system call by the numbers and registers of 32-bit programs."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(_INT_80)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    call = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_uint] * 5)(address)
    child = os.fork()
    if not child:
        os._exit(call(I386_GETPID, 0, 0, 0, 0) != os.getpid())
    if os.waitpid(child, 0)[1]:
        pytest.skip("this kernel has no 32-bit system calls (CONFIG_IA32_EMULATION)")
    yield call


@pytest.mark.parametrize("name", ["epoll_wait", "poll", "llistxattr", "poll of one"])
def test_the_end_of_a_tick_by_a_32_bit_system_call(
    service: Service, call32: Callable[..., int], name: str
) -> None:
    """232 is epoll_wait in 64-bit programs. 256 and 168 wait in 32-bit programs only."""
    low = ctypes.CDLL(None, use_errno=True).mmap
    low.restype = ctypes.c_void_p
    page = low(None, 4096, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, -1, 0)  # MAP_32BIT

    def run() -> None:
        with asked(service) as server, select.epoll() as epoll:
            read_exactly(server, len(REQUEST))
            if name == "epoll_wait":
                assert call32(I386_EPOLL_WAIT, epoll.fileno(), page, 1, 0) == 0
            elif name == "llistxattr":
                assert call32(I386_LLISTXATTR, page, page, 64, 0) < 0  # no such file
            else:
                ctypes.memset(page, 0xFF, 16)  # descriptors that are left out
                assert call32(I386_POLL, page, 1 if name == "poll of one" else 2, 0, 0) == 0
            assert (service.call("/tick").trace_id == TRACE) is (
                name in ("llistxattr", "poll of one")
            )

    in_thread(run)


# -- two processors at once ------------------------------------------------------------------------


def test_a_request_is_counted_once_by_whoever_settles_it(world: World, service: Service) -> None:
    """Two processors that end one request at once count it once.

    The entry is gone already when the other processor is ending it.
    """
    traced, _, _ = world
    numbers: list[int] = []

    def opened() -> tuple[int, list[bytes]]:
        with pinned(traced, "tl_threads") as threads, pinned(traced, "tl_open") as table:
            value = maps.lookup(threads, struct.pack("<I", numbers[0]), THREAD.size)
            assert value is not None
            thread = THREAD.unpack(value)
            return thread[8], [key for key in maps.keys(table, 16) if key[8:] == value[:8]]

    def run() -> None:
        numbers.append(threading.get_native_id())
        with asked(service) as server:
            read_exactly(server, len(REQUEST))
            assert [opened()[0], len(opened()[1])] == [1, 1]
            assert service.call("/once").trace_id == TRACE
            assert opened() == (1, opened()[1]), "the answer to the call has opened it again"
            with pinned(traced, "tl_open") as table:
                (key,) = opened()[1]
                assert maps.delete(table, key)
            service._near.sendall(text := head(target="/twice"))
            assert inserted(text, read_block(service._far)).trace_id
            assert opened() == (1, []), "it was not this call that settled the request"
            service._far.sendall(OK)
            read_exactly(service._near, len(OK))

    in_thread(run)
