"""Which processes the programs are told of."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import elffile
from tests.unit.runtimes.java.hotspot import BASE, BORN, PID, STATICS_AT, HotSpot, libjvm
from throughline.bpf import abi, maps
from throughline.probes.provider import Answer, Found, Probed, Process
from throughline.runtimes.java.provider import JavaProvider
from throughline.steps import finish

BINS, RUNTIMES = 1, 2
START = BASE + elffile.TEXT_ADDRESS


class Maps:
    """The maps of the kernel, as dictionaries."""

    def __init__(self) -> None:
        self.tables: dict[int, dict[bytes, bytes]] = {BINS: {}, RUNTIMES: {}}

    def map_fd(self, name: str) -> int:
        return {"tl_java_bins": BINS, "tl_runtimes": RUNTIMES}[name]

    @property
    def runtimes(self) -> dict[int, abi.Runtime]:
        return {
            int.from_bytes(key, "little"): abi.Runtime(*abi.RUNTIME.unpack(value))
            for key, value in self.tables[RUNTIMES].items()
        }


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Maps:
    found = Maps()
    tables = found.tables

    def update(fd: int, key: bytes, value: bytes) -> None:
        tables[fd][key] = value

    monkeypatch.setattr(maps, "update", update)
    monkeypatch.setattr(maps, "lookup", lambda fd, key, _size: tables[fd].get(key))
    monkeypatch.setattr(maps, "delete", lambda fd, key: tables[fd].pop(key, None) is not None)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "libjvm.so"
    path.write_bytes(libjvm())
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def provider(kernel: Any, tmp_path: Path) -> JavaProvider:
    """Its clock goes on by a second each time that it is asked."""
    return JavaProvider(kernel, proc=tmp_path, clock=iter(range(1000)).__next__)


def mapped(file: int, *processes: Process) -> list[Probed]:
    return [Probed(file, (), processes)]


ONE = Process(PID, BORN, START, elffile.TEXT_OFFSET)


def test_a_file_is_found_by_what_it_exports(kernel: Maps, tmp_path: Path, file: int) -> None:
    java = provider(kernel, tmp_path)
    assert java.find(file) == Found()
    other = tmp_path / "other.so"
    other.write_bytes(elffile.build({"gHotSpotVMStructs": b"\xc3"}))
    fd = os.open(other, os.O_RDONLY)
    assert java.find(fd) is Answer.NOT_MINE, "a function of this name is no table"
    os.close(fd)


def test_a_process_is_told_and_forgotten(kernel: Maps, tmp_path: Path, file: int) -> None:
    HotSpot().write(tmp_path)
    java = provider(kernel, tmp_path)
    probed = mapped(file, ONE)
    finish(java.tick(probed))
    (entry,) = kernel.runtimes.values()
    assert (entry.kind, entry.base, entry.born) == (abi.RuntimeKind.RUNTIME_JAVA, BASE, BORN)
    packed = kernel.tables[BINS][maps.U32.pack(entry.binary)]
    assert abi.JavaBinary(*abi.JAVA_BINARY.unpack(packed)).threads == STATICS_AT - BASE
    assert java.describe(probed[0]) == {"version": "21.0.8+9-LTS"}
    finish(java.tick(mapped(file)))
    assert kernel.runtimes == {} and java.failures == {}
    assert java.describe(mapped(file)[0]) == {}


def test_an_entry_that_gave_way_is_told_again(kernel: Maps, tmp_path: Path, file: int) -> None:
    HotSpot().write(tmp_path)
    java = provider(kernel, tmp_path)
    finish(java.tick(mapped(file, ONE)))
    told = dict(kernel.tables[RUNTIMES])
    kernel.tables[RUNTIMES].clear()
    finish(java.tick(mapped(file, ONE)))
    assert kernel.tables[RUNTIMES] == told


@pytest.mark.parametrize(
    "other", [{"kind": abi.RuntimeKind.RUNTIME_NODE}, {"born": BORN + 1}], ids=["kind", "born"]
)
def test_an_entry_of_another_process_stays(
    kernel: Maps, tmp_path: Path, file: int, other: dict[str, int]
) -> None:
    HotSpot().write(tmp_path)
    java = provider(kernel, tmp_path)
    finish(java.tick(mapped(file, ONE)))
    changed = abi.RUNTIME.pack(*kernel.runtimes[PID]._replace(**other))
    kernel.tables[RUNTIMES][maps.U32.pack(PID)] = changed
    finish(java.tick(mapped(file)))
    assert kernel.tables[RUNTIMES] == {maps.U32.pack(PID): changed}


def test_processes_that_say_the_same_share_an_index(
    kernel: Maps, tmp_path: Path, file: int
) -> None:
    """What one process says is not used for another one that says something else."""
    HotSpot().write(tmp_path)
    shutil.copytree(tmp_path / str(PID), tmp_path / "10")
    HotSpot(tid=32).write(tmp_path / "x")
    shutil.copytree(tmp_path / "x" / str(PID), tmp_path / "11")
    java = provider(kernel, tmp_path)
    others = [Process(pid, BORN, START, elffile.TEXT_OFFSET) for pid in (10, 11)]
    finish(java.tick(mapped(file, ONE, *others)))
    binary = {pid: entry.binary for pid, entry in kernel.runtimes.items()}
    assert binary[PID] == binary[10] != binary[11]


def test_an_earlier_run_has_left_its_indices(kernel: Maps, tmp_path: Path, file: int) -> None:
    HotSpot().write(tmp_path)
    finish(provider(kernel, tmp_path).tick(mapped(file, ONE)))
    before = dict(kernel.tables[RUNTIMES])
    finish(provider(kernel, tmp_path).tick(mapped(file, ONE)))
    assert kernel.tables[RUNTIMES] == before


def test_a_jvm_that_comes_up_slowly(kernel: Maps, tmp_path: Path, file: int) -> None:
    HotSpot(threads=("main",)).write(tmp_path)
    java = provider(kernel, tmp_path)
    finish(java.tick(mapped(file, ONE)))
    assert kernel.runtimes == {} and java.failures == {}
    HotSpot().write(tmp_path)
    finish(java.tick(mapped(file, ONE)))
    assert set(kernel.runtimes) == {PID}


@pytest.mark.parametrize(
    ("hotspot", "reason"),
    [
        (HotSpot("9.0.4"), {"unsupported": 1}),
        (HotSpot(threads=("main",)), {"unsupported": 1}),
        (HotSpot(tid=16), {"unsupported": 1}),
    ],
)
def test_a_jvm_that_is_not_known(
    kernel: Maps, tmp_path: Path, file: int, hotspot: HotSpot, reason: dict[str, int]
) -> None:
    hotspot.write(tmp_path)
    java = provider(kernel, tmp_path)
    for _ in range(70):
        finish(java.tick(mapped(file, ONE)))
    assert (kernel.runtimes, java.failures) == ({}, reason)


def test_memory_that_may_not_be_read(kernel: Maps, tmp_path: Path, file: int) -> None:
    (tmp_path / str(PID)).mkdir()
    java = provider(kernel, tmp_path)
    for _ in range(70):
        finish(java.tick(mapped(file, ONE)))
    assert java.failures == {"unreadable": 1}


def test_a_process_that_ends_meanwhile(kernel: Maps, tmp_path: Path, file: int) -> None:
    java = provider(kernel, tmp_path)
    for _ in range(70):
        finish(java.tick(mapped(file, ONE)))
    assert java.failures == {}


def test_a_mapping_that_is_no_code(kernel: Maps, tmp_path: Path, file: int) -> None:
    HotSpot().write(tmp_path)
    java = provider(kernel, tmp_path)
    finish(java.tick(mapped(file, Process(PID, BORN, START, 1 << 30))))
    assert (kernel.runtimes, java.failures) == ({}, {"unsupported": 1})
