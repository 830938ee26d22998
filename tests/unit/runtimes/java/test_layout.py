"""What is read of a HotSpot: offsets by its own table, releases that are known, damage."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.unit.runtimes.java.hotspot import (
    BASE,
    FIELDS_17,
    FIELDS_21,
    FIELDS_25,
    PID,
    STATICS_AT,
    HotSpot,
    libjvm,
)
from throughline.bpf import abi
from throughline.elf.elf import Elf
from throughline.host.memory import Memory
from throughline.runtimes.java import layout, vmstructs
from throughline.runtimes.java.layout import Layout
from throughline.runtimes.java.vmstructs import NotYetError, UnsupportedError


def names(proc: Path) -> dict[int, str]:
    return {
        int(status.read_text().split()[-1]): status.read_text().split("\n")[0].split("\t")[1]
        for status in proc.glob(f"{PID}/task/*/status")
    }


def found(tmp_path: Path, hotspot: HotSpot) -> Layout:
    hotspot.write(tmp_path)
    return again(tmp_path)


def again(tmp_path: Path) -> Layout:
    file = tmp_path / "libjvm.so"
    file.write_bytes(libjvm())
    fd = os.open(file, os.O_RDONLY)
    try:
        elf = Elf.open(fd, machine=62)
        assert elf is not None
        exports = vmstructs.exports(elf)
        assert exports is not None
        with Memory(PID, proc=tmp_path) as memory:
            return layout.find(memory, BASE, exports, names(tmp_path))
    finally:
        os.close(fd)


def test_java_17_has_no_virtual_threads(tmp_path: Path) -> None:
    result = found(tmp_path, HotSpot("17.0.15+6-Debian-1deb12u1", FIELDS_17))
    assert result.release == "17.0.15+6-Debian-1deb12u1"
    packed = abi.JavaBinary(*abi.JAVA_BINARY.unpack(result.pack()))
    assert packed.thread_vthread == packed.thread_owner == abi.Java.UNKNOWN
    assert (packed.thread_osthread, packed.osthread_id) == (560, 208)
    assert packed.threads == STATICS_AT - BASE


@pytest.mark.parametrize("colored", [0, 1, 2, 4, 8])
def test_java_21_reads_the_object_of_the_thread(tmp_path: Path, colored: int) -> None:
    """Whatever the collector makes of its pointers."""
    result = found(tmp_path, HotSpot(colored=colored))
    packed = abi.JavaBinary(*abi.JAVA_BINARY.unpack(result.pack()))
    assert (packed.object_eetop, packed.object_tid, packed.thread_vthread) == (16, 24, 896)
    assert packed.thread_owner == abi.Java.UNKNOWN


def test_java_25_has_the_id_in_its_thread(tmp_path: Path) -> None:
    result = found(tmp_path, HotSpot("25.0.3+9-LTS", FIELDS_25))
    packed = abi.JavaBinary(*abi.JAVA_BINARY.unpack(result.pack()))
    assert (packed.thread_owner, packed.thread_entry) == (1312, 1560)
    assert packed.object_tid == abi.Java.UNKNOWN


@pytest.mark.parametrize(
    ("hotspot", "error"),
    [
        (HotSpot("16.0.1+9"), UnsupportedError),
        (HotSpot("26-ea+1"), UnsupportedError),
        (HotSpot("x"), UnsupportedError),
        (HotSpot(release=""), NotYetError),
        (HotSpot(threads=("main", "Reference Handl")), NotYetError),
        (HotSpot(stride=56), UnsupportedError),
        (HotSpot(eetop=128), UnsupportedError),
        (HotSpot(tid=16), UnsupportedError),
        (HotSpot("25.0.3", {**FIELDS_21}), UnsupportedError),
        (HotSpot("21", {**FIELDS_21, "JavaThread::_vthread": 1 << 20}), UnsupportedError),
        (HotSpot("17", {k: v for k, v in FIELDS_17.items() if "state" not in k}), UnsupportedError),
    ],
)
def test_what_is_not_known(tmp_path: Path, hotspot: HotSpot, error: type[Exception]) -> None:
    with pytest.raises(error):
        found(tmp_path, hotspot)


def test_a_table_without_end(tmp_path: Path) -> None:
    with pytest.raises((OSError, UnsupportedError)):
        found(tmp_path, HotSpot(ends=False))


def test_a_library_that_is_being_loaded(tmp_path: Path) -> None:
    HotSpot().write(tmp_path)
    os.truncate(tmp_path / str(PID) / "mem", 0)
    os.truncate(tmp_path / str(PID) / "mem", 0x600000)
    with pytest.raises(NotYetError):
        again(tmp_path)


def test_damaged_memory_ends_in_no_other_error(tmp_path: Path) -> None:
    """A process writes what it likes: the answer is a layout with small offsets, or an error."""
    random_ = random.Random(23)
    HotSpot().write(tmp_path)
    path = tmp_path / str(PID) / "mem"
    whole = path.read_bytes()
    places = [at for at in range(0, len(whole), 8) if any(whole[at : at + 8])]
    outcomes: Counter[str] = Counter()
    with path.open("r+b", buffering=0) as mem:
        for _ in range(1600):
            changed = [random_.choice(places) + random_.randrange(8) for _ in range(4)]
            for at in changed:
                os.pwrite(
                    mem.fileno(), bytes([random_.choice((0, 255, random_.randrange(256)))]), at
                )
            try:
                again(tmp_path).pack()
                outcomes["found"] += 1
            except (OSError, UnsupportedError, NotYetError):
                outcomes["refused"] += 1
            for at in changed:
                os.pwrite(mem.fileno(), whole[at : at + 1], at)
    assert outcomes.keys() == {"refused", "found"}
