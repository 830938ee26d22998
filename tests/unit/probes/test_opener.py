"""The process that opens uprobes: what it answers, what it refuses, and what it leaves open."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from tests.fixtures import openers
from tests.fixtures.waiting import until
from throughline.bpf import perfevent
from throughline.probes import opener, opening
from throughline.probes.opener import ANSWER, REQUEST
from throughline.probes.opening import Opening

HERE = os.getuid()
GOOD = REQUEST.pack(64, opener.ALL, 0, b"")


class Kernel:
    """Opens an event of its own for each request that gets so far."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, bool, int | None]] = []  # inode, offset, returns, pid
        self.refusal: OSError | None = None

    def open_uprobe(self, path: str, offset: int, *, returns: bool, pid: int | None) -> int:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append((Path(path).stat().st_ino, offset, returns, pid))
        return os.memfd_create("event", os.MFD_CLOEXEC)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(perfevent, "open_uprobe", made.open_uprobe)
    return made


@contextmanager
def serving(path: Path, *, users: set[int]) -> Iterator[None]:
    """The process as a thread, which systemd starts again whenever it ends."""
    over = Event()
    with openers.listen(path) as listener:

        def serve() -> None:
            while not over.is_set():
                opener.serve(listener, users=users, idle=0.1)

        thread = Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.fixture
def place(tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(opener, "SILENT_SECONDS", 0.2)
    path = tmp_path / "socket"
    monkeypatch.setenv(opening.SOCKET, str(path))
    with serving(path, users={HERE}):
        yield path


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "libssl.so"
    path.write_bytes(bytes(4096))
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    yield descriptor
    os.close(descriptor)


def ask(path: Path, message: bytes, files: list[int]) -> tuple[int, int] | None:
    """The error number and the number of descriptors of the answer; None: the connection ended."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(5)
        connection.connect(str(path))
        try:
            socket.send_fds(connection, [message], files)
            answer, events, _, _ = socket.recv_fds(connection, 64, 4)
        except (BrokenPipeError, ConnectionResetError):
            return None
        for event in events:
            os.close(event)
    return (ANSWER.unpack(answer)[0], len(events)) if answer else None


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def wait_closed(before: int) -> None:
    """Waits until there are as many descriptors as before: a thread closes its own a bit later."""
    until(descriptors, enough=lambda now: now == before, seconds=5, otherwise="some stay open")


@pytest.mark.parametrize(("returns", "pid"), [(False, None), (True, None), (False, 7)])
def test_an_event_of_the_file_behind_the_descriptor_is_passed(
    place: Path, kernel: Kernel, file: int, returns: bool, pid: int | None
) -> None:
    before = descriptors()
    event = Opening().open_uprobe(f"/proc/self/fd/{file}", 64, returns=returns, pid=pid)
    assert "memfd:event" in str(Path(f"/proc/self/fd/{event}").readlink())
    assert not os.get_inheritable(event)
    os.close(event)
    assert kernel.asked == [(os.fstat(file).st_ino, 64, returns, pid)]
    wait_closed(before)


def test_the_refusal_of_the_kernel_is_passed(place: Path, kernel: Kernel, file: int) -> None:
    kernel.refusal = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="throughline-probes: Input/output error") as raised:
        Opening().open_uprobe(f"/proc/self/fd/{file}", 64, returns=False, pid=None)
    assert raised.value.errno == errno.EIO


@pytest.mark.parametrize(
    "message",
    [
        b"\0",
        GOOD[:-1],
        GOOD + b"\0",
        GOOD * 4096,
        REQUEST.pack(64, opener.ALL, 2, b""),
        REQUEST.pack(64, opener.ALL, 0, b"\0\0\1"),
        REQUEST.pack(64, 0, 0, b""),
        REQUEST.pack(64, -2, 0, b""),
        REQUEST.pack(1 << 63, opener.ALL, 0, b""),
    ],
)
def test_a_malformed_message_ends_its_connection_only(
    place: Path, kernel: Kernel, file: int, message: bytes
) -> None:
    before = descriptors()
    assert ask(place, message, [file]) is None
    assert kernel.asked == []
    assert ask(place, GOOD, [file]) == (0, 1)
    wait_closed(before)


@pytest.mark.parametrize("count", [0, 2, 5, 250])
def test_there_is_one_descriptor_in_a_message(
    place: Path, kernel: Kernel, file: int, count: int
) -> None:
    before = descriptors()
    assert ask(place, GOOD, [file] * count) is None
    assert ask(place, b"", [file] * count) is None
    assert kernel.asked == []
    assert ask(place, GOOD, [file]) == (0, 1)
    wait_closed(before)


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda path: os.open(path.parent, os.O_RDONLY), errno.EINVAL),
        (lambda path: os.open("/dev/zero", os.O_RDONLY), errno.EINVAL),
        (lambda path: os.eventfd(0), errno.EINVAL),
        (lambda path: os.open(path, os.O_WRONLY), errno.EBADF),
        (lambda path: os.open(path, os.O_PATH), errno.EBADF),
        (lambda path: os.open(path, os.O_RDWR), 0),
    ],
    ids=["directory", "device", "no file", "write-only", "path-only", "read-write"],
)
def test_the_file_is_a_regular_one_that_the_agent_can_read(
    place: Path, kernel: Kernel, tmp_path: Path, make: Callable[[Path], int], number: int
) -> None:
    path = tmp_path / "given"
    path.touch()
    before = descriptors()
    given = make(path)
    try:
        assert ask(place, GOOD, [given]) == (number, 0 if number else 1)
    finally:
        os.close(given)
    assert len(kernel.asked) == (0 if number else 1)
    wait_closed(before)


def test_another_user_gets_no_answer(tmp_path: Path, kernel: Kernel, file: int) -> None:
    path = tmp_path / "socket"
    with serving(path, users={HERE + 1}):
        assert ask(path, GOOD, [file]) is None
    assert kernel.asked == []


def test_one_connection_may_ask_often(place: Path, kernel: Kernel, file: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(place))
        for _ in range(23):
            socket.send_fds(connection, [GOOD], [file])
            _, events, _, _ = socket.recv_fds(connection, 64, 4)
            os.close(*events)
    assert len(kernel.asked) == 23


def test_one_who_says_nothing_does_not_keep_others_waiting(place: Path, file: int) -> None:
    with ExitStack() as stack:
        for _ in range(3):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            silent.connect(str(place))
        assert ask(place, GOOD, [file]) == (0, 1)


def test_it_ends_when_nobody_asks(tmp_path: Path) -> None:
    with openers.listen(tmp_path / "socket") as listener:
        begin = time.monotonic()
        opener.serve(listener, users={HERE}, idle=0.2)
        assert time.monotonic() - begin >= 0.2


# -- the agent's side ------------------------------------------------------------------------------


def test_without_the_process_the_reason_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: int
) -> None:
    monkeypatch.setenv(opening.SOCKET, str(tmp_path / "none"))
    before = descriptors()
    asked = Opening()
    for _ in range(2):  # it may be there the next time
        with pytest.raises(OSError, match=r"throughline-probes \(.*none\): No such file") as raised:
            asked.open_uprobe(f"/proc/self/fd/{file}", 0, returns=False, pid=None)
        assert raised.value.errno == errno.ENOENT
    wait_closed(before)


def test_a_process_that_hangs_is_not_waited_for_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: Kernel, file: int
) -> None:
    path = tmp_path / "socket"
    monkeypatch.setenv(opening.SOCKET, str(path))
    monkeypatch.setattr(opening, "FIRST_SECONDS", 0.2)
    monkeypatch.setattr(opening, "PAUSE_SECONDS", 1.0)
    before = descriptors()
    asked = Opening()
    with openers.listen(path):
        begin = time.monotonic()
        for _ in range(100):
            with pytest.raises(TimeoutError, match="throughline-probes gave no answer"):
                asked.open_uprobe(f"/proc/self/fd/{file}", 0, returns=False, pid=None)
        assert 0.2 <= time.monotonic() - begin < 0.9, "it was waited for once"
    path.unlink()
    with serving(path, users={HERE}):
        time.sleep(1.0)
        os.close(asked.open_uprobe(f"/proc/self/fd/{file}", 0, returns=False, pid=None))
    wait_closed(before)


@pytest.mark.parametrize("said", [b"", b"\0", ANSWER.pack(0), ANSWER.pack(errno.EACCES)])
def test_an_answer_without_an_event_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: int, said: bytes
) -> None:
    path = tmp_path / "socket"
    monkeypatch.setenv(opening.SOCKET, str(path))
    before = descriptors()
    with openers.listen(path) as listener:

        def once() -> None:
            connection, _ = listener.accept()
            with connection:
                _, files, _, _ = socket.recv_fds(connection, 64, 4)
                for each in files:
                    os.close(each)
                if said:
                    connection.send(said)

        thread = Thread(target=once)
        thread.start()
        with pytest.raises(OSError, match="throughline-probes") as raised:
            Opening().open_uprobe(f"/proc/self/fd/{file}", 0, returns=False, pid=None)
        thread.join()
    assert raised.value.errno == (
        errno.EACCES if said == ANSWER.pack(errno.EACCES) else errno.EPROTO
    )
    wait_closed(before)
