"""Which processes of Python the programs are told of as servers of threads."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures import elffile, started
from tests.fixtures.frames import MAIN, Image
from tests.fixtures.started import RANDOM_AT
from throughline.bpf import abi, maps
from throughline.bpf.runtimes import Entry, Runtimes
from throughline.probes.provider import Probed, Process
from throughline.probes.site import Site
from throughline.runtimes.python.stack import Call
from throughline.runtimes.python.workers import Workers
from throughline.steps import finish

PID, BORN, BASE, INDEX = 7, 4711, 0x10000, 3
START = BASE + elffile.TEXT_ADDRESS
GUNICORN = b"/bin/python3\0/bin/gunicorn\0app:app\0"
FLAGS = abi.RuntimeFlags
MAPPED = "7f0000000000-7f0000001000 r-xp 00000000 08:01 77 {}\n"
ONE = Process(PID, BORN, START, elffile.TEXT_OFFSET)


class Proc:
    """/proc with one process of Python, and the map of the kernel."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / str(PID)
        self.folder.mkdir()
        self.runs(GUNICORN)
        self.maps("/bin/python3", "/lib/libc.so.6")
        (self.folder / "exe").symlink_to("/bin/python3.11")
        self.starts(0xABCD)
        self.table: dict[bytes, bytes] = {}
        self.failures: Counter[str] = Counter()
        self.now = 100.0
        self.workers = Workers(Runtimes(1), self.failures, root, clock=lambda: self.now)

    def runs(self, words: bytes) -> None:
        (self.folder / "cmdline").write_bytes(words)

    def maps(self, *names: str) -> None:
        (self.folder / "maps").write_text("".join(map(MAPPED.format, names)))

    def starts(self, random: int) -> None:
        """As execve() does."""
        started.write(self.folder, random)

    def tick(self, file: int, *processes: Process, times: int = 1, greenlets: bool = False) -> None:
        sites = (Site("tl_py_copied", 0, cookie=INDEX),)
        python = Probed(file, sites, processes)
        switching = [Probed(file, sites, processes)] if greenlets else []
        for _ in range(times):
            finish(self.workers.tick([python], switching))
            self.now += 1

    @property
    def entry(self) -> Entry | None:
        return Runtimes(1).find(PID)

    @property
    def flags(self) -> int:
        return self.entry.flags if self.entry else 0


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Proc:
    found = Proc(tmp_path)

    def update(_fd: int, key: bytes, value: bytes) -> None:
        found.table[key] = value

    monkeypatch.setattr(maps, "update", update)
    monkeypatch.setattr(maps, "lookup", lambda _fd, key, _size: found.table.get(key))
    return found


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "python"
    path.write_bytes(elffile.build({"main": b"\xc3"}))
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_a_server_of_threads_is_told(proc: Proc, file: int) -> None:
    proc.tick(file, ONE)
    kind = abi.RuntimeKind.RUNTIME_PYTHON
    assert proc.entry == Entry(kind, INDEX, BASE, BORN, RANDOM_AT, 0xABCD, FLAGS.RUNTIME_WORKERS)
    assert not proc.failures


def test_other_programs_are_not(proc: Proc, file: int) -> None:
    for words in (b"", b"/bin/python3\0app.py\0", b"\xff\0" * 9, bytes(99), b"x" * 100_000):
        proc.runs(words)
        proc.tick(file, ONE)
        assert proc.entry is None
    assert not proc.failures


def test_what_the_programs_have_seen_is_kept(proc: Proc, file: int) -> None:
    proc.tick(file, ONE)
    assert proc.entry
    seen = FLAGS.RUNTIME_WORKERS | FLAGS.RUNTIME_TASKS
    key = maps.U32.pack(PID)
    known = abi.Runtime(*abi.RUNTIME.unpack(proc.table[key]))
    proc.table[key] = abi.RUNTIME.pack(*known._replace(flags=seen))
    proc.tick(file, ONE, times=3)
    assert proc.flags == seen
    # by now it has loaded what it runs: what it forks is the same
    proc.tick(file, ONE, times=2)
    assert proc.flags == seen | FLAGS.RUNTIME_SETTLED
    # the process executes another server: what was seen of the first one says nothing of it
    proc.starts(0xEF01)
    proc.tick(file, ONE, times=10)
    assert proc.flags == FLAGS.RUNTIME_WORKERS | FLAGS.RUNTIME_SETTLED
    proc.runs(b"/bin/python3\0app.py\0")
    proc.tick(file, ONE, times=10)
    assert proc.flags == 0


def test_greenlets_have_to_be_seen(proc: Proc, file: int) -> None:
    proc.maps("/bin/python3", "/venv/greenlet/_greenlet.cpython-311-x86_64-linux-gnu.so")
    proc.tick(file, ONE)
    assert proc.flags == 0
    proc.tick(file, ONE, greenlets=True)
    assert proc.flags == FLAGS.RUNTIME_WORKERS


@pytest.mark.parametrize("name", ["/venv/uvloop/loop.cpython-311.so", "/lib/ld-musl-x86_64.so.1"])
def test_libraries_that_no_server_of_threads_has(proc: Proc, file: int, name: str) -> None:
    proc.maps("/bin/python3", name)
    proc.tick(file, ONE)
    assert proc.flags == 0


def test_a_process_that_ends_or_may_not_be_read(proc: Proc, file: int) -> None:
    (proc.folder / "mem").unlink()
    proc.tick(file, ONE)
    assert proc.failures == {"process_unreadable": 1}
    proc.starts(1)
    (proc.folder / "stat").write_bytes(b"\1\2\3")
    proc.tick(file, ONE)
    assert proc.failures == {"process_unreadable": 2}
    proc.tick(file, Process(8, BORN, START, 0))
    assert proc.failures == {"process_unreadable": 2}
    assert proc.entry is None


SERVES = [
    Call("/usr/lib/python3.11/socketserver.py", "serve_forever"),
    Call("/venv/werkzeug/serving.py", "serve_forever"),
    Call("/venv/werkzeug/serving.py", "run_simple"),
]


def test_what_the_main_thread_is_calling(proc: Proc, file: int) -> None:
    proc.runs(b"/bin/python3\0app.py\0")
    image = Image(11)
    proc.workers.learn(INDEX, image.places, 16)
    for calls in ([Call("/srv/app.py", "<module>")], SERVES):
        assert proc.entry is None
        image.threads([(MAIN, calls)])
        image.write(proc.folder)
        proc.tick(file, ONE, times=10)
    assert proc.entry is not None
    assert (proc.entry.acceptor, proc.flags) == (MAIN + 16, FLAGS.RUNTIME_WORKERS)
    before = replace(proc.entry, acceptor=0)
    # what the programs note is kept, also where its threads cannot be read for a moment
    key = maps.U32.pack(PID)
    noted = abi.Runtime(*abi.RUNTIME.unpack(proc.table[key]))
    noted = noted._replace(port=80, since_ns=7, others_0=9090, flags=noted.flags | 4)
    proc.table[key] = abi.RUNTIME.pack(*noted)
    proc.tick(file, ONE, times=3)
    image.threads([(MAIN, [])])
    image.write(proc.folder)
    proc.tick(file, ONE)
    assert proc.failures == {"stack_unreadable": 1}
    assert proc.table[key] == abi.RUNTIME.pack(*noted)
    # it serves no more: what begins later has accepted nothing
    image.threads([(MAIN, SERVES[1:])])
    image.write(proc.folder)
    proc.tick(file, ONE)
    assert proc.flags == 4
    assert proc.entry == replace(before, flags=4)
    # it serves again, and other threads accept there: that stays
    image.threads([(MAIN, SERVES)])
    image.write(proc.folder)
    proc.table[key] = abi.RUNTIME.pack(*noted._replace(flags=FLAGS.RUNTIME_SHARED))
    proc.tick(file, ONE)
    assert proc.flags == FLAGS.RUNTIME_SHARED | FLAGS.RUNTIME_WORKERS
    # greenlets may be anywhere
    proc.maps("/bin/python3", "/venv/greenlet/_greenlet.cpython-311-x86_64-linux-gnu.so")
    proc.tick(file, ONE)
    assert proc.flags == FLAGS.RUNTIME_SHARED
    # the index may be another file's
    proc.maps("/bin/python3")
    proc.workers.unlearn(INDEX)
    proc.tick(file, ONE)
    assert proc.flags == FLAGS.RUNTIME_SHARED


def test_a_worker_of_a_queue(proc: Proc, file: int) -> None:
    proc.runs(b"/bin/python3\0/bin/celery\0-A\0shop\0worker\0")
    proc.tick(file, ONE)
    kind = abi.RuntimeKind.RUNTIME_PYTHON
    jobs = abi.Jobs.CELERY
    assert proc.entry == Entry(kind, INDEX, BASE, BORN, RANDOM_AT, 0xABCD, 0, jobs)
    proc.runs(b"/bin/python3\0/bin/celery\0-A\0shop\0beat\0")
    proc.tick(file, ONE)
    assert proc.entry is not None
    assert proc.entry.jobs == abi.Jobs.NONE


def test_a_process_that_begins_to_serve_is_looked_at_at_once(proc: Proc, file: int) -> None:
    proc.runs(b"/bin/python3\0app.py\0")
    proc.tick(file, ONE, times=42)
    proc.runs(GUNICORN)
    proc.tick(file, ONE)
    assert proc.flags == 0  # it is looked at every ten seconds
    proc.tick(file, replace(ONE, listens=1))
    assert proc.flags == FLAGS.RUNTIME_WORKERS | FLAGS.RUNTIME_SETTLED
