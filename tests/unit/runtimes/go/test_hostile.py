"""Hostile Go binaries: damage of any kind ends soon, in little memory, with one of our exceptions.

A traced process chooses what its executable contains. What must never come out is a site that is
outside of the code, or work without end.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fixtures import gofile, goprogram
from throughline.elf.elf import MalformedError
from throughline.runtimes.go import image, pclntab
from throughline.runtimes.go.analysis import analyse
from throughline.runtimes.go.binary import pack
from throughline.runtimes.go.families import FAMILIES
from throughline.runtimes.go.program import UnsupportedError
from throughline.runtimes.go.rtypes import Types
from throughline.runtimes.go.starts import Starts

REFUSALS = (MalformedError, UnsupportedError)
GOOD = gofile.build()
BARE = gofile.build(sections=False, relocated=True)
HEADER = gofile.DATA_AT  # the function table's
MODULE = gofile.MODULE - gofile.BASE
TYPES = gofile.TYPES - gofile.BASE
TOO_MANY = (1 << 64) - 1


def patched(data: bytes, *changes: tuple[int, str, int]) -> bytes:
    changed = bytearray(data)
    for offset, layout, value in changes:
        struct.pack_into(layout, changed, offset, value)
    return bytes(changed)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def examine(fd: int, size: int) -> float:
    """Analyses, checks what comes out, and returns the processor time that it took."""
    started = time.process_time()
    try:
        program = analyse(fd)
    except REFUSALS:
        program = None
    took = time.process_time() - started
    if program is not None:
        assert all(0 <= site.offset < size for site in program.sites.values())
        assert all(0 <= offset < 1 << 32 for offset in program.offsets.values())
    return took


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(patched(GOOD, (HEADER + 8, "<Q", TOO_MANY)), id="functions without end"),
        pytest.param(patched(GOOD, (HEADER + 8, "<Q", 1 << 20)), id="a million functions"),
        pytest.param(patched(GOOD, (HEADER + 8, "<Q", 0)), id="no function"),
        pytest.param(patched(GOOD, (HEADER + 32, "<Q", TOO_MANY)), id="names behind the end"),
        pytest.param(patched(GOOD, (HEADER + 40, "<Q", 1 << 30)), id="names of a gigabyte"),
        pytest.param(patched(GOOD, (HEADER + 64, "<Q", 1 << 30)), id="records behind the end"),
        pytest.param(patched(GOOD, (MODULE + 23 * 8, "<Q", 0)), id="text that ends too early"),
        pytest.param(patched(GOOD, (MODULE + 37 * 8, "<Q", 1)), id="types of everything"),
        pytest.param(patched(GOOD, (MODULE + 38 * 8, "<Q", TOO_MANY)), id="types without end"),
        pytest.param(patched(GOOD, (MODULE + 38 * 8, "<Q", 0)), id="types that end too early"),
        pytest.param(
            patched(GOOD, (TYPES + 0x100 + 64, "<Q", TOO_MANY)),
            id="fields without end",
        ),
        pytest.param(patched(GOOD, (TYPES + 0x2000, "<Q", TOO_MANY)), id="a field without a name"),
        pytest.param(patched(GOOD, (TYPES + 0x2000 + 16, "<Q", TOO_MANY)), id="a field far away"),
        pytest.param(
            patched(GOOD, (gofile.VARIABLES_AT + 32, "<Q", TOO_MANY)), id="a version without end"
        ),
        pytest.param(patched(GOOD, (56, "<H", 0xFFFF)), id="65535 segments"),
        pytest.param(patched(GOOD, (64 + 56 + 32, "<Q", 1 << 40)), id="a segment of a terabyte"),
        pytest.param(
            patched(
                BARE,
                (64 + 56 + 16, "<Q", 1 << 63),
                (gofile.VARIABLES_AT + 0x600 + 8, "<Q", (1 << 63) + 0x6000),
            ),
            id="a function table where the kernel is",
        ),
        pytest.param(
            patched(BARE, (gofile.VARIABLES_AT + 0x600 + 24, "<Q", TOO_MANY)),
            id="relocations without end",
        ),
        pytest.param(
            patched(BARE, (gofile.VARIABLES_AT + 0x600 + 8, "<Q", 1)), id="relocations from nowhere"
        ),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with opened(path) as fd:
        started = time.process_time()
        with pytest.raises(REFUSALS):
            analyse(fd)
        assert time.process_time() - started < 0.5


def test_fields_in_a_circle_end(tmp_path: Path) -> None:
    """A struct that contains itself."""
    structs: dict[str, gofile.Fields] = {"net.TCPConn": [("conn", 8, "net.TCPConn")]}
    path = tmp_path / "file"
    path.write_bytes(gofile.build(structs=structs))
    with opened(path) as fd:
        program = analyse(fd)
    assert program is not None
    assert "net.TCPConn.conn.fd" not in program.offsets


def test_a_field_that_no_struct_has_room_for_is_missing(tmp_path: Path) -> None:
    far = 0xFFFF
    structs: dict[str, gofile.Fields] = {"runtime.g": [("goid", far, ""), ("m", 48, "*")]}
    data = bytearray(gofile.build(structs=structs))
    struct.pack_into("<Q", data, TYPES + 0x100, far + 8)  # the struct's size
    path = tmp_path / "file"
    path.write_bytes(data)
    with opened(path) as fd:
        program = analyse(fd)
    assert program is not None
    assert "runtime.g.m" in program.offsets
    assert program.offsets.get("runtime.g.goid") != far
    for family in FAMILIES:
        pack(program, family)


@pytest.mark.parametrize("together", [1, 4096])
@pytest.mark.parametrize("changed", [0, 16])
def test_functions_that_are_not_in_order_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int, changed: int
) -> None:
    """The first one begins behind the second; the last one ends before it begins."""
    monkeypatch.setattr(pclntab, "_FUNCTIONS", together)
    pairs = HEADER + int.from_bytes(GOOD[HEADER + 64 : HEADER + 72], "little")
    path = tmp_path / "file"
    path.write_bytes(patched(GOOD, (pairs + changed, "<I", 0x50 if changed == 0 else 0x30)))
    with opened(path) as fd, pytest.raises(MalformedError, match="not in order"):
        Starts(fd)


def test_a_large_sparse_file_costs_little(tmp_path: Path) -> None:
    """A file of 200 MB that says that all of it is data, and that there are no sections."""
    path = tmp_path / "sparse"
    size = 200 << 20
    damaged = patched(BARE, (gofile.DATA_AT, "<I", 0), (64 + 56 + 32, "<Q", size - 0x2000))
    path.write_bytes(damaged)
    os.truncate(path, size)
    tracemalloc.start()
    with opened(path) as fd:
        took = examine(fd, size)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20
    assert took < 5
    os.truncate(path, 2 << 30)
    with opened(path) as fd, pytest.raises(UnsupportedError, match="2048 MB"):
        analyse(fd)


def test_names_that_are_everywhere_end(tmp_path: Path) -> None:
    """The types begin with a name that is asked for: every zero may be a descriptor's."""
    name = b"\0\x0a*runtime.g"
    data = bytearray(GOOD)
    data[TYPES : TYPES + len(name)] = name
    path = tmp_path / "file"
    path.write_bytes(data)
    with opened(path) as fd:
        assert examine(fd, len(data)) < 1


def test_structs_that_are_everywhere_end(tmp_path: Path) -> None:
    """Thousands of descriptors of one name, and none of a struct that could be read."""
    data = bytearray(GOOD)
    at = data.index(b"\0\x0a*runtime.g") - TYPES
    data[TYPES + 0x100 : TYPES + 0x2000] = struct.pack("<II", at, 0x19000001) * (0x1F00 // 8)
    path = tmp_path / "file"
    path.write_bytes(data)
    with opened(path) as fd:
        assert examine(fd, len(data)) < 1


def test_time_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_MAX_SECONDS", -1.0)
    path = tmp_path / "file"
    path.write_bytes(GOOD)
    with opened(path) as fd, pytest.raises(UnsupportedError, match="not understood within"):
        analyse(fd)


@pytest.mark.parametrize("whole", [GOOD, BARE], ids=["sections", "bare"])
def test_every_truncation_ends(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "short"
    path.write_bytes(whole)
    for size in range(len(whole) - 1, 0, -41):
        os.truncate(path, size)
        with opened(path) as fd:
            assert examine(fd, size) < 0.5


@pytest.mark.parametrize("code", [b"\xe8", b"\xe9", b"\xcc"])
def test_a_function_that_is_nothing_but_calls_counts_as_one_that_waits(
    tmp_path: Path, code: bytes
) -> None:
    size, text = 1 << 16, 0x500000
    pairs = HEADER + int.from_bytes(GOOD[HEADER + 64 : HEADER + 72], "little")
    data = patched(
        GOOD,
        *((64 + 8, "<Q", len(GOOD)), (64 + 16, "<Q", text), (64 + 32, "<Q", size)),
        *((MODULE + 22 * 8, "<Q", text), (MODULE + 23 * 8, "<Q", text + size)),
        (pairs + 16, "<I", size),  # where the last function ends
    )
    path = tmp_path / "file"
    path.write_bytes(data + code * size)
    with opened(path) as fd:
        starts = Starts(fd)
        assert starts.receives(text + gofile.APART, fd) == (code != b"\xcc")


VALUES = (0, 1, 8, 0x7F, 0x80, 0xFF)


def _damage(
    generator: random.Random, places: list[int], write: Callable[[int, bytes], None]
) -> None:
    for _ in range(generator.randint(1, 6)):
        place = generator.choice(places)
        if generator.random() < 0.3:
            place -= place % 8
            width = generator.choice((2, 4, 8))
            value = generator.choice((0, 1, 1 << width * 8 - 1, (1 << width * 8) - 1, 0x400000))
            write(place, value.to_bytes(8, "little")[:width])
        else:
            write(place, bytes([generator.choice((*VALUES, generator.randrange(256)))]))


@pytest.mark.parametrize("whole", [GOOD, BARE], ids=["sections", "bare"])
def test_random_damage_ends(tmp_path: Path, whole: bytes) -> None:
    generator = random.Random(27)
    path = tmp_path / "damaged"
    parsed = [place for place in range(len(whole) - 8) if whole[place] or place < 0x200]
    slowest = 0.0
    end = time.monotonic() + 15
    for _ in range(1500):
        data = bytearray(whole)

        def write(place: int, value: bytes, data: bytearray = data) -> None:
            data[place : place + len(value)] = value

        _damage(generator, parsed, write)
        path.write_bytes(data)
        with opened(path) as fd:
            slowest = max(slowest, examine(fd, len(data)))
        if time.monotonic() > end:
            break
    assert slowest < 1


def test_random_damage_to_dwarf_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a program without type data, for which it is read."""
    monkeypatch.setattr(Types, "find", lambda self, wanted: {})
    whole = goprogram.build(tmp_path / "real", "-ldflags=-compressdwarf=false").read_bytes()
    path = tmp_path / "damaged"
    path.write_bytes(whole)
    generator = random.Random(5)
    places = list(goprogram.debugging(whole))
    slowest = 0.0
    end = time.monotonic() + 8
    with path.open("r+b", buffering=0) as file, opened(path) as fd:
        while time.monotonic() < end:
            changed = [generator.choice(places) for _ in range(40)]
            for place in changed:
                os.pwrite(file.fileno(), bytes([generator.choice(VALUES)]), place)
            slowest = max(slowest, examine(fd, len(whole)))
            for place in changed:
                os.pwrite(file.fileno(), whole[place : place + 1], place)
    assert slowest < 2


def test_random_damage_to_compressed_dwarf_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Types, "find", lambda self, wanted: {})
    path = goprogram.build(tmp_path / "real")
    size = path.stat().st_size
    generator = random.Random(6)
    with path.open("r+b", buffering=0) as file, opened(path) as fd:
        for _ in range(30):
            # the sections of DWARF are the last ones, before symbols
            place = generator.randrange(size // 2, size - 64)
            before = os.pread(fd, 64, place)
            os.pwrite(file.fileno(), generator.randbytes(64), place)
            assert examine(fd, size) < 2
            os.pwrite(file.fileno(), before, place)


def test_what_inflates_without_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte that becomes a gigabyte."""
    monkeypatch.setattr(image, "_MAX_SECONDS", 1.0)
    path = tmp_path / "file"
    path.write_bytes(_with_dwarf(zlib.compress(bytes(1 << 30), 1)))
    tracemalloc.start()
    with opened(path) as fd:
        assert examine(fd, path.stat().st_size) < 3
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20


def _with_dwarf(compressed: bytes) -> bytes:
    """A program without types, with .debug_info and .debug_abbrev that inflate to this."""
    section = struct.pack("<IIQQ", 1, 0, 1 << 30, 1) + compressed
    names = b"\0.shstrtab\0.go.buildinfo\0.debug_info\0.debug_abbrev\0"
    body = gofile.build("go1.22.99", structs={}, sections=False)
    whole = bytearray(body + section + names)
    whole += bytes(-len(whole) % 8)
    headers = [bytes(64)]
    for name, kind, flags, address, offset, size in (
        (b".shstrtab", 3, 0, 0, len(body) + len(section), len(names)),
        (b".go.buildinfo", 1, 2, gofile.BASE + gofile.VARIABLES_AT, gofile.VARIABLES_AT, 0x600),
        (b".debug_info", 1, 0x800, 0, len(body), len(section)),
        (b".debug_abbrev", 1, 0, 0, len(body) + len(section), len(names)),
    ):
        place = names.index(name + b"\0")
        header = struct.pack("<IIQQQQ", place, kind, flags, address, offset, size)
        headers.append(header.ljust(64, b"\0"))
    struct.pack_into("<Q", whole, 40, len(whole))
    struct.pack_into("<HHH", whole, 58, 64, len(headers), 1)
    return bytes(whole + b"".join(headers))


def test_random_damage_to_a_real_program_ends(tmp_path: Path) -> None:
    """In its headers, function table, module data and types: where the analysis looks."""
    whole = goprogram.build(tmp_path / "real", "-ldflags=-s -w").read_bytes()
    path = tmp_path / "damaged"
    path.write_bytes(whole)
    generator = random.Random(26)
    places = list(goprogram.parsed(whole, generator))
    slowest = 0.0
    end = time.monotonic() + 10
    with path.open("r+b", buffering=0) as file, opened(path) as fd:
        while time.monotonic() < end:
            changed: list[int] = []

            def write(place: int, value: bytes, changed: list[int] = changed) -> None:
                changed.append(place)
                os.pwrite(file.fileno(), value, place)

            _damage(generator, places, write)
            slowest = max(slowest, examine(fd, len(whole)))
            for place in changed:
                os.pwrite(file.fileno(), whole[place : place + 8], place)
    assert path.read_bytes() == whole
    assert slowest < 5
