"""Which processes of Ruby the programs are told of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import elffile, started
from tests.fixtures.started import RANDOM_AT
from throughline.bpf import abi, maps
from throughline.bpf.runtimes import Entry, Runtimes
from throughline.probes.provider import Answer, Found, Probed, Process
from throughline.runtimes.ruby.provider import RubyProvider
from throughline.steps import finish

PID, BORN = 7, 4711
FLAGS = abi.RuntimeFlags
PUMA = "puma 7.2.1 (tcp://0.0.0.0:3000) [shop]"
ONE = Process(PID, BORN, 0x10000, 0)


class Proc:
    """/proc with one process of Ruby, and the map of the kernel."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.table: dict[bytes, bytes] = {}
        self.folder = root / str(PID)
        self.folder.mkdir()
        (self.folder / "exe").symlink_to("/usr/bin/ruby3.3")
        self.title(PUMA)
        self.starts(0xABCD)
        monkeypatch.setattr(maps, "lookup", lambda _fd, key, _size: self.table.get(key))
        monkeypatch.setattr(
            maps, "update", lambda _fd, key, value: self.table.__setitem__(key, value)
        )
        monkeypatch.setattr(maps, "delete", lambda _fd, key: self.table.pop(key, None))
        self.now = 100.0
        self.provider = RubyProvider(Runtimes(1), proc=root, clock=lambda: self.now)

    def title(self, text: str) -> None:
        (self.folder / "cmdline").write_bytes(text.encode() + bytes(9))

    def starts(self, random: int) -> None:
        """As execve() does."""
        started.write(self.folder, random)

    def tick(self, *processes: Process, times: int = 1) -> None:
        for _ in range(times):
            finish(self.provider.tick([Probed(-1, (), processes)]))
            self.now += 1

    @property
    def entry(self) -> Entry | None:
        return Runtimes(1).find(PID)


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Proc:
    return Proc(tmp_path, monkeypatch)


def test_puma(proc: Proc) -> None:
    proc.tick(ONE)
    kind = abi.RuntimeKind.RUNTIME_RUBY
    assert proc.entry == Entry(kind, 0, 0, BORN, RANDOM_AT, 0xABCD, FLAGS.RUNTIME_TAKES)
    assert proc.provider.failures == {"context_unreadable": 1}  # there is no file
    proc.tick(ONE, times=5)
    assert proc.entry.flags == FLAGS.RUNTIME_TAKES | FLAGS.RUNTIME_SETTLED


def test_unicorn(proc: Proc) -> None:
    proc.title("unicorn worker[0] -c unicorn.rb")
    proc.tick(ONE)
    assert proc.entry is not None
    assert proc.entry.flags == FLAGS.RUNTIME_WORKERS | FLAGS.RUNTIME_READABLE


def test_a_title_comes_later_and_may_go(proc: Proc) -> None:
    proc.title("ruby bin/rails server")
    proc.tick(ONE)
    assert proc.entry is None
    proc.title(PUMA)
    proc.tick(ONE)
    assert proc.entry is not None
    proc.title("shop")
    proc.tick(ONE)
    assert proc.entry is None


def test_what_a_fork_has_inherited_stays_settled(proc: Proc) -> None:
    proc.tick(ONE, times=6)
    proc.provider = RubyProvider(Runtimes(1), proc=proc.folder.parent)
    proc.tick(ONE)
    assert proc.entry is not None
    assert proc.entry.flags == FLAGS.RUNTIME_TAKES | FLAGS.RUNTIME_SETTLED
    proc.starts(0xBEEF)
    proc.tick(ONE)
    assert (proc.entry.check, proc.entry.flags) == (0xBEEF, FLAGS.RUNTIME_TAKES)


def test_an_entry_of_another_process_is_left_alone(proc: Proc) -> None:
    other = Entry(abi.RuntimeKind.RUNTIME_PYTHON, 1, 2, BORN, 3, 4, 0)
    Runtimes(1).tell(PID, other)
    proc.title("irb")
    proc.tick(ONE)
    assert proc.entry == other


def test_a_process_that_cannot_be_read_is_counted(proc: Proc) -> None:
    (proc.folder / "mem").unlink()
    proc.tick(ONE)
    assert (proc.entry, proc.provider.failures) == (None, {"process_unreadable": 1})


def test_a_process_that_has_ended_is_not_counted(proc: Proc, tmp_path: Path) -> None:
    for name in ("stat", "cmdline", "mem", "exe"):
        (tmp_path / str(PID) / name).unlink()
    (tmp_path / str(PID)).rmdir()
    proc.tick(ONE)
    assert not proc.provider.failures


@pytest.fixture
def ruby(tmp_path: Path) -> Iterator[int]:
    names = {"ruby_version": b"3.3.8\0", "ruby_api_version": bytes(12)}
    path = tmp_path / "libruby.so"
    path.write_bytes(elffile.build(names, kind=1))
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_a_file_is_found_by_what_it_exports(proc: Proc, ruby: int, tmp_path: Path) -> None:
    assert proc.provider.find(ruby) == Found()
    assert proc.provider.describe(Probed(ruby, ())) == {"version": "3.3.8"}
    other = tmp_path / "other.so"
    other.write_bytes(elffile.build({"ruby_version": b"3.3.8\0"}, kind=1))
    fd = os.open(other, os.O_RDONLY)
    assert proc.provider.find(fd) == Answer.NOT_MINE
    os.close(fd)
