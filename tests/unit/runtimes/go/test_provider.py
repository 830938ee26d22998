"""What go.bpf.o is told of a Go program, from a binary made by hand."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fixtures import gofile
from throughline.bpf import abi, maps
from throughline.probes.provider import Answer, Found, Probed
from throughline.probes.site import Site
from throughline.runtimes.go import analysis, pclntab, provider
from throughline.runtimes.go.image import Image
from throughline.runtimes.go.pending import FORGET_SECONDS, GIVE_WAY_SECONDS, MAX_PENDING
from throughline.runtimes.go.program import UnsupportedError
from throughline.runtimes.go.provider import GoProvider
from throughline.runtimes.go.starts import Starts
from throughline.steps import finish


class Maps:
    """Of an object that is not loaded."""

    def map_fd(self, name: str) -> int:
        known = {"tl_go_binaries": BINARIES, "tl_go_starts": STARTS, "tl_unit_layouts": PROCESSES}
        return {**known, "tl_go_started": STARTED}.get(name, -1)


BINARIES, STARTS, PROCESSES, STARTED = 1001, 1002, 1003, 1004
Told = dict[tuple[int, bytes], bytes]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What is in the maps: descriptor and key -> value."""
    found: Told = {}

    def keys(fd: int, size: int) -> Iterator[bytes]:
        return iter([key for of, key in list(found) if of == fd and len(key) == size])

    monkeypatch.setattr(maps, "keys", keys)
    monkeypatch.setattr(maps, "lookup", lambda fd, key, size: found.get((fd, key)))
    monkeypatch.setattr(maps, "delete", lambda fd, key: found.pop((fd, key)))
    monkeypatch.setattr(maps, "update", lambda fd, key, value: found.__setitem__((fd, key), value))
    return found


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def programs(told: Told, clock: Clock) -> Iterator[GoProvider]:
    made = GoProvider(Maps(), write=True, clock=clock)  # type: ignore[arg-type]
    yield made
    made.close()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[int]:
    """A program, open."""
    path = tmp_path / "shop"
    path.write_bytes(gofile.build())
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def answer(programs: GoProvider, *probed: tuple[int, tuple[Site, ...]]) -> None:
    """A tick, with these files and their sites."""
    finish(programs.tick([Probed(fd, sites) for fd, sites in probed]))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def find(programs: GoProvider, path: Path) -> tuple[Site, ...]:
    """What is found when the analysis is done, for which the spans of others do not wait."""
    fd = os.open(path, os.O_RDONLY)
    try:
        for _ in range(1000):
            match programs.find(fd):
                case Found(sites):
                    return sites
                case Answer.NOT_MINE:
                    return ()
            time.sleep(0.01)
    finally:
        os.close(fd)
    raise AssertionError("the analysis does not end")


def test_a_program_has_an_index(programs: GoProvider, told: Told, tmp_path: Path) -> None:
    path = tmp_path / "shop"
    path.write_bytes(gofile.build())
    (site,) = find(programs, path)
    assert (site.program, site.offset) == ("tl_go_starts_another", gofile.TEXT_AT + 4)
    assert site.cookie == 1 | abi.Go.RESTARTS
    first = (1).to_bytes(4, "little")
    assert set(told) == {(BINARIES, first), (STARTED, first)}
    assert told[STARTED, first] == bytes(4), "as many functions as any other has room"
    assert programs.describe(Probed(0, (site,)))["version"].startswith("go1.")
    assert find(programs, path) == (site,), "the same program has the same index"
    assert not programs.failures


def test_a_program_that_was_written_to_meanwhile_has_another_index(
    programs: GoProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a lease the digest may be of what another program has."""
    monkeypatch.setattr(analysis, "digest", lambda *_: "the same")
    (tmp_path / "one").write_bytes(gofile.build("go1.22.10"))
    (tmp_path / "other").write_bytes(gofile.build("go1.24.3"))
    (one,), (other,) = (find(programs, tmp_path / name) for name in ("one", "other"))
    assert one.cookie != other.cookie


def test_what_is_kept_of_programs_is_bounded(
    programs: GoProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Three numbers of four bytes for each."""
    monkeypatch.setattr(provider, "_MAX_KEPT_BYTES", 24)
    content = gofile.build()
    for name, more in (("one", b""), ("two", b"2"), ("again", b"")):
        (tmp_path / name).write_bytes(content + more)
        assert find(programs, tmp_path / name)
    (tmp_path / "three").write_bytes(content + b"3")
    assert find(programs, tmp_path / "three") == ()
    assert programs.failures == {"too_many_programs": 1}
    answer(programs)
    assert find(programs, tmp_path / "three")


def test_what_cannot_be_followed_is_counted(programs: GoProvider, tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(gofile.build(version="go1.17.13"))
    assert find(programs, tmp_path / "old") == ()
    assert programs.failures == {"unsupported": 1}
    (tmp_path / "sh").write_bytes(b"#!/bin/sh\n")
    assert find(programs, tmp_path / "sh") == ()
    assert programs.failures == {"unsupported": 1}


def test_a_fault_of_ours_does_not_end_it(
    programs: GoProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise struct.error("int too large to convert")

    (tmp_path / "shop").write_bytes(gofile.build())
    with monkeypatch.context() as patched:
        patched.setattr(analysis, "analyse", fail)
        assert find(programs, tmp_path / "shop") == ()
    assert programs.failures == {"failed": 1}


def test_a_function_that_cannot_be_looked_at_receives(
    programs: GoProvider, told: Told, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shop: int
) -> None:
    def fail(*_: object) -> bool:
        raise struct.error("int too large to convert")

    sites = find(programs, tmp_path / "shop")
    start = abi.GO_START_KEY.pack(*abi.GoStartKey(pc=gofile.TEXT, binary=1))
    told[STARTS, start] = bytes([abi.GoStart.NEW])
    monkeypatch.setattr(Starts, "receives", fail)
    answer(programs, (shop, sites))
    assert told[STARTS, start] == bytes([abi.GoStart.RECEIVES])
    assert programs.failures == {"failed": 1}


def test_the_end_does_not_wait_for_the_analysis(
    programs: GoProvider, monkeypatch: pytest.MonkeyPatch, shop: int
) -> None:
    begun = threading.Event()

    def without_end(image: Image, *_: object) -> None:
        begun.set()
        while True:
            image.check_time()

    monkeypatch.setattr(pclntab, "tables", without_end)
    assert programs.find(shop) is Answer.LATER
    (waiting,) = programs._analyses._pending.values()
    assert begun.wait(10)
    started = time.monotonic()
    programs.close()
    assert time.monotonic() - started < 5
    with pytest.raises(UnsupportedError, match="given up"):
        waiting.future.result(0)


@pytest.mark.parametrize("read", [analysis.analyse, Starts, analysis.digest])
def test_what_nobody_waits_for_is_given_up(
    read: Callable[[int, threading.Event], object], shop: int
) -> None:
    stop = threading.Event()
    assert read(shop, stop) is not None
    stop.set()
    with pytest.raises(UnsupportedError, match="given up"):
        read(shop, stop)


def test_a_program_that_nobody_asks_for_is_forgotten(
    programs: GoProvider, clock: Clock, shop: int
) -> None:
    """Its process has ended while it was looked into."""
    before = descriptors()
    assert programs.find(shop) is Answer.LATER
    answer(programs)
    assert len(programs._analyses._pending) == 1
    clock.now += FORGET_SECONDS + 1
    deadline = time.monotonic() + 10
    while programs._analyses._pending and time.monotonic() < deadline:
        answer(programs)
        time.sleep(0.01)
    assert (programs._analyses._pending, descriptors()) == ({}, before)


def test_so_many_wait_and_no_more(programs: GoProvider, tmp_path: Path, shop: int) -> None:
    before = descriptors()
    content = gofile.build()
    for number in range(2 * MAX_PENDING):
        path = tmp_path / str(number)
        path.write_bytes(content)
        fd = os.open(path, os.O_RDONLY)
        assert programs.find(fd) is Answer.LATER
        os.close(fd)
    assert len(programs._analyses._pending) == MAX_PENDING
    assert descriptors() <= before + MAX_PENDING


def test_programs_that_nobody_asks_for_give_way(
    programs: GoProvider, clock: Clock, tmp_path: Path
) -> None:
    """More services than there is room for have ended while they were looked into: the next one is
    looked into at once, not after FORGET_SECONDS."""
    content = gofile.build()
    for number in range(MAX_PENDING):
        (tmp_path / str(number)).write_bytes(content)
        fd = os.open(tmp_path / str(number), os.O_RDONLY)
        assert programs.find(fd) is Answer.LATER
        os.close(fd)
    for waiting in programs._analyses._pending.values():
        waiting.future.result(60)
    clock.now += GIVE_WAY_SECONDS + 1
    (tmp_path / "late").write_bytes(content)
    assert find(programs, tmp_path / "late")


def test_what_was_found_before_a_write_holds_no_more(
    programs: GoProvider, tmp_path: Path, shop: int
) -> None:
    """The file is written over while it waits for the one who asked."""
    assert programs.find(shop) is Answer.LATER
    (first,) = programs._analyses._pending.values()
    first.future.result(60)
    (tmp_path / "shop").write_bytes(gofile.build(version="go1.17.13"))
    later = time.time_ns() + 1_000_000_000  # some file systems count in hundredths of a second
    os.utime(tmp_path / "shop", ns=(later, later))
    assert find(programs, tmp_path / "shop") == ()
    assert programs.failures == {"unsupported": 1}


def test_what_is_probed_no_more_gives_its_index_back(
    programs: GoProvider, told: Told, tmp_path: Path, shop: int
) -> None:
    sites = find(programs, tmp_path / "shop")
    one = (1).to_bytes(8, "little")  # struct tl_unit_layout, which begins with the index
    start = abi.GO_START_KEY.pack(*abi.GoStartKey(pc=gofile.TEXT_AT, binary=1))
    for kept in (True, False):
        told |= {
            (PROCESSES, b"process1"): one,
            (PROCESSES, b"process2"): (2).to_bytes(8, "little"),
            (STARTS, start): bytes([abi.GoStart.NEW]),
        }
        answer(programs, *([(shop, sites)] if kept else []))
        assert ((PROCESSES, b"process1") in told) == kept
        assert ((STARTS, start) in told) == kept
        assert (PROCESSES, b"process2") in told
        assert told.get((STARTS, start)) != bytes([abi.GoStart.NEW])
    (again,) = find(programs, tmp_path / "shop")
    assert again.cookie & (abi.Go.BINARIES - 1) == 2, "the last one to be taken again"


def test_indices_never_end(programs: GoProvider, tmp_path: Path) -> None:
    content = gofile.build()
    for number in range(abi.Go.BINARIES + 5):
        path = tmp_path / str(number)
        path.write_bytes(content + number.to_bytes(8, "little"))
        assert find(programs, path)
        answer(programs)
    assert not programs.failures
