"""ELF files that contradict themselves: refused soon, by MalformedError, and never misread.

OpenSSL's sites are what is looked for in them.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
import time
from pathlib import Path

import pytest

from tests.fixtures import elffile
from tests.fixtures.elffile import build, patched
from tests.fixtures.openssl_sites import INNER, sites
from throughline.elf.elf import Elf, MalformedError, gnu_hash, sysv_hash
from throughline.tls import openssl


def test_hashes_are_those_of_the_standards() -> None:
    assert gnu_hash(b"") == 5381
    assert gnu_hash(b"printf") == 0x156B2BB8
    assert sysv_hash(b"printf") == 0x077905A6


GOOD = build(elffile.libssl())
TABLE = GOOD.index(struct.pack("<IIII", 1, 1, 1, 6))
STATIC = build(elffile.libssl(), static=True)
SECTIONS = struct.unpack_from("<Q", STATIC, 40)[0]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(patched(GOOD, 56, "<H", 0xFFFF), id="65535 program headers"),
        pytest.param(patched(GOOD, 54, "<H", 1), id="program headers of one byte"),
        pytest.param(patched(GOOD, 32, "<Q", 1 << 40), id="program headers behind the end"),
        pytest.param(patched(GOOD, 32, "<Q", (1 << 64) - 1), id="no such offset"),
        pytest.param(patched(GOOD, 64 + 8, "<Q", 1 << 63), id="segment beyond off_t"),
        pytest.param(patched(GOOD, 64 + 16, "<Q", (1 << 64) - 8), id="segment far too high"),
        pytest.param(patched(GOOD, 64 + 32, "<Q", 1 << 63), id="segment that ends too high"),
        pytest.param(patched(GOOD, 64 + 56, "<I4xQ", 4, 1 << 63), id="notes beyond off_t"),
        pytest.param(patched(GOOD, 64 + 2 * 56 + 8, "<Q", 1 << 33), id="dynamic behind the end"),
        pytest.param(patched(GOOD, TABLE, "<I", 0), id="no bucket"),
        pytest.param(patched(GOOD, TABLE + 8, "<I", 0), id="no bloom word"),
        pytest.param(patched(GOOD, TABLE + 12, "<I", 200), id="shift of 200 bits"),
        pytest.param(patched(GOOD, TABLE + 4 + 16 + 4, "<I", 0x7FFFFFFF), id="bucket far away"),
        pytest.param(
            patched(build(elffile.libssl(), table="sysv"), TABLE, "<I", 0), id="no SysV bucket"
        ),
        pytest.param(
            patched(build(elffile.libssl(), table="sysv"), TABLE + 12, "<7I", *[1] * 7),
            id="chain in a circle",
        ),
        pytest.param(
            patched(patched(STATIC, 40, "<Q", 1 << 63), 60, "<H", 0), id="no sections, nowhere"
        ),
        pytest.param(patched(STATIC, 60, "<H", 0xFFFE), id="65534 sections"),
        pytest.param(patched(STATIC, SECTIONS + 64 + 32, "<Q", 1 << 24), id="symbols too long"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, data: bytes) -> None:
    started = time.perf_counter()
    with pytest.raises(MalformedError):
        sites(tmp_path, data)
    assert time.perf_counter() - started < 1


def test_symbols_larger_than_the_bound_are_not_read(tmp_path: Path) -> None:
    data = patched(STATIC, SECTIONS + 128 + 32, "<Q", 1 << 40)
    assert sites(tmp_path, data) == ()


def test_a_name_without_end_of_copies_is_refused(tmp_path: Path) -> None:
    strings = b"\0" + b"SSL_read\0" * 100_000
    data = patched(STATIC, SECTIONS + 128 + 24, "<QQ", len(STATIC), len(strings)) + strings
    with pytest.raises(MalformedError, match="times"):
        sites(tmp_path, data)
    symbols = struct.pack("<IBBHQQ", 1, 0x11, 0, 1, 0, 0) * 100_000
    data = with_static(symbols, b"\0SSL_read\0SSL_write\0")
    with pytest.raises(MalformedError, match="repeats"):
        sites(tmp_path, data)


def with_static(symbols: bytes, strings: bytes) -> bytes:
    """A program with these tables."""
    data = patched(STATIC, SECTIONS + 64 + 24, "<QQ", len(STATIC), len(symbols)) + symbols
    return patched(data, SECTIONS + 128 + 24, "<QQ", len(data), len(strings)) + strings


def test_names_and_symbols_without_end_take_a_moment(tmp_path: Path) -> None:
    """Tables as large as may be: 32 MB of each."""
    names = (*openssl._READ, *openssl._WRITE, openssl._HANDSHAKE, openssl._FREE)
    symbols = struct.pack("<IBBHQQ", 1, 0x12, 0, 1, elffile.TEXT_ADDRESS, 16)
    symbols = symbols.ljust((32 << 20) // 24 * 24, b"\0")
    path = tmp_path / "file"
    for times in (10, 60):
        strings = b"\0" + b"".join(f"{name}\0".encode() * times for name in names)
        path.write_bytes(with_static(symbols, strings.ljust(32 << 20, b"S")))
        started = time.process_time()
        with contextlib.suppress(MalformedError):
            openssl.sites(path)
        assert time.process_time() - started < 2


def test_overlapping_segments_lead_nowhere_else(tmp_path: Path) -> None:
    """All of the address space in one segment that is not executable, before the others."""
    data = patched(GOOD, 64 + 32, "<Q", 1 << 62)
    assert sites(tmp_path, data) == INNER
    # and the other way round: text where the tables are
    data = patched(GOOD, 64 + 56 + 8, "<QQ", 0, 0)
    try:
        found = sites(tmp_path, data)
    except MalformedError:
        return
    assert all(site.offset < len(data) for site in found)


@pytest.mark.parametrize("static", [False, True])
def test_every_truncation_ends(tmp_path: Path, static: bool) -> None:
    whole = STATIC if static else GOOD
    expected = sites(tmp_path, whole)
    path = tmp_path / "short"
    path.write_bytes(whole)
    for size in range(len(whole) - 1, 0, -1 if len(whole) < 2048 else -7):
        os.truncate(path, size)
        with contextlib.suppress(MalformedError):
            assert openssl.sites(path) in ((), expected)


def test_random_damage_ends(tmp_path: Path) -> None:
    """Bytes changed in what is parsed: no other exception, no long work, no site outside."""
    generator = random.Random(20)
    path = tmp_path / "damaged"
    parsed = [*range(64 + 3 * 56), *range(64 + 3 * 56, 0x400)]
    slowest = 0.0
    for number in range(3000):
        data = bytearray(STATIC if number % 2 else GOOD)
        places = [*parsed, *range(SECTIONS, len(data))] if number % 2 else parsed
        for _ in range(generator.randint(1, 6)):
            data[generator.choice(places)] = generator.choice(
                (0, 1, 0x7F, 0x80, 0xFF, number % 256)
            )
        path.write_bytes(data)
        started = time.process_time()
        try:
            for site in openssl.sites(path):
                assert 0 <= site.offset < 1 << 64
        except MalformedError:
            pass
        slowest = max(slowest, time.process_time() - started)
    assert slowest < 0.25


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(GOOD)
    fd = os.open(path, os.O_RDONLY)
    try:
        before = len(list(Path("/proc/self/fd").iterdir()))
        assert Elf.open(fd, machine=62) is not None
        assert openssl.sites_of(fd) == INNER
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        os.close(fd)
