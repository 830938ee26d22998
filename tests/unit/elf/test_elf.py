"""Symbols and probe sites of ELF files: small ones made by hand, real ones, and hostile ones."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import struct
import time
from pathlib import Path

import pytest

from tests.fixtures import elffile
from tests.fixtures.elffile import APART, ENDBR64, JE, PUSH, SUB, TEST_RDI, TEXT_OFFSET, build, call
from throughline.elf.elf import Elf, MalformedError, gnu_hash, sysv_hash
from throughline.probes.uprobes import Site
from throughline.tls import openssl

LIBSSL = Path("/usr/lib/x86_64-linux-gnu/libssl.so.3")


def sites(tmp_path: Path, data: bytes) -> tuple[Site, ...]:
    path = tmp_path / "file"
    path.write_bytes(data)
    return openssl.sites(path)


def at(number: int) -> int:
    return TEXT_OFFSET + number * APART


def pair(program: str, offset: int, *, dear: bool = False) -> tuple[Site, Site]:
    at_return = openssl.RETURNS[program]
    return Site(program, offset, False, dear), Site(at_return, offset, True, dear)


INNER = (
    *pair("tl_ssl_read_ex", at(2)),
    *pair("tl_ssl_write_ex", at(5)),
    Site("tl_ssl_free", at(6) + 3, False),
)


def test_hashes_are_those_of_the_standards() -> None:
    assert gnu_hash(b"") == 5381
    assert gnu_hash(b"printf") == 0x156B2BB8
    assert sysv_hash(b"printf") == 0x077905A6


@pytest.mark.parametrize("table", ["gnu", "sysv"])
def test_the_inner_function_is_probed_where_the_outer_ones_are_dear(
    tmp_path: Path, table: str
) -> None:
    assert sites(tmp_path, build(elffile.libssl(), table=table)) == INNER


def test_symbols_of_a_program_that_is_not_stripped(tmp_path: Path) -> None:
    assert sites(tmp_path, build(elffile.libssl(), static=True)) == INNER


def test_a_name_may_be_the_end_of_another(tmp_path: Path) -> None:
    """The linker's tail merging: the symbol's name points into a longer one."""
    data = build({"SSL_write": PUSH, "XSSL_read": PUSH}, static=True)
    assert sites(tmp_path, data) == ()
    name = data.index(b"XSSL_read\0") - data.index(b"\0SSL_write\0XSSL_read\0")
    symbol = data.index(struct.pack("<IBBH", name, 0x12, 0, 1))
    assert sites(tmp_path, patched(data, symbol, "<I", name + 1)) == (
        *pair("tl_ssl_read", at(1)),
        *pair("tl_ssl_write", at(0)),
    )


def test_no_table_no_symbols(tmp_path: Path) -> None:
    assert sites(tmp_path, build(elffile.libssl(), table="none")) == ()


@pytest.mark.parametrize("begin", [PUSH, b"\x41\x57\xc3", b"\x90\xc3", b"\x74\x00\xc3", JE])
def test_a_function_that_begins_cheap_is_probed_itself(tmp_path: Path, begin: bytes) -> None:
    data = build({"SSL_read": begin, "SSL_write": begin})
    assert sites(tmp_path, data) == (*pair("tl_ssl_read", at(0)), *pair("tl_ssl_write", at(1)))


@pytest.mark.parametrize("skipped", [ENDBR64, TEST_RDI, ENDBR64 + TEST_RDI, b"\x85\xd2"])
def test_what_changes_no_argument_is_skipped(tmp_path: Path, skipped: bytes) -> None:
    data = build({"SSL_read": skipped + PUSH, "SSL_write": skipped + JE})
    past = len(skipped)
    assert sites(tmp_path, data) == (
        *pair("tl_ssl_read", at(0) + past),
        *pair("tl_ssl_write", at(1) + past),
    )


@pytest.mark.parametrize(
    "begin", [SUB, ENDBR64 + SUB, b"\x8b\x07\xc3", b"\x85\x17\x55", b"\xff\x25", b"\xf2\xe9", b""]
)
def test_a_dear_one_says_so(tmp_path: Path, begin: bytes) -> None:
    data = build({"SSL_read": begin, "SSL_write": begin})
    assert sites(tmp_path, data) == (
        *pair("tl_ssl_read", at(0), dear=True),
        *pair("tl_ssl_write", at(1), dear=True),
    )


def test_an_inner_function_is_also_probed_past_endbr64(tmp_path: Path) -> None:
    functions = {**elffile.libssl(), ".ssl_read_internal": ENDBR64 + PUSH}
    assert sites(tmp_path, build(functions))[:2] == pair("tl_ssl_read_ex", at(2) + 4)


def test_since_openssl_3_3_writes_take_flags(tmp_path: Path) -> None:
    functions = {
        **elffile.libssl(),
        "SSL_write_ex": call(b"\x49\x89\xc8\x31\xc9", here=4, there=7, jump=True),
        "SSL_write_ex2": call(SUB[:4], here=7, there=5),
    }
    assert sites(tmp_path, build(functions))[2:4] == pair("tl_ssl_write_x2", at(5))


def test_the_handshake_is_probed_too(tmp_path: Path) -> None:
    functions = {"SSL_read": PUSH, "SSL_write": PUSH, "SSL_do_handshake": ENDBR64 + PUSH}
    assert sites(tmp_path, build(functions))[4:] == pair("tl_ssl_shake", at(2) + 4)


def test_what_reads_and_writes_both_call_is_not_taken(tmp_path: Path) -> None:
    """As OpenSSL's error queue, which comes first here."""
    functions = elffile.libssl()
    for number, name in enumerate(list(functions)):
        if name.startswith(("SSL_read", "SSL_write")):
            first = call(SUB[:4], here=number, there=7)[:-1]
            functions[name] = call(first, here=number, there=2 if "read" in name else 5)
    functions[".ERR_new"] = PUSH
    assert sites(tmp_path, build(functions)) == INNER
    only = {
        name: call(SUB[:4], here=number, there=7) if name.startswith("SSL_") else code
        for number, (name, code) in enumerate(functions.items())
    }
    assert {site.dear for site in sites(tmp_path, build(only))} == {True}


def test_a_function_that_only_calls_the_other_has_no_site(tmp_path: Path) -> None:
    """As in LibreSSL: SSL_read_ex calls SSL_read, and each read would be seen twice."""
    functions = {"SSL_read": SUB, "SSL_read_ex": call(SUB[:4], here=1, there=0), "SSL_write": PUSH}
    assert sites(tmp_path, build(functions)) == (
        *pair("tl_ssl_read", at(0), dear=True),
        *pair("tl_ssl_write", at(2)),
    )


def test_other_files_have_none(tmp_path: Path) -> None:
    assert sites(tmp_path, build({"main": PUSH})) == ()
    assert sites(tmp_path, build({"SSL_read": PUSH})) == ()
    assert sites(tmp_path, build(elffile.libssl(), machine=183)) == ()
    assert sites(tmp_path, b"") == ()
    assert sites(tmp_path, b"\x7fELF\x01\x01" + bytes(58)) == ()
    assert sites(tmp_path, b"#!/bin/sh\n" * 50) == ()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert openssl.sites(fifo) == ()
    assert openssl.sites(tmp_path.parent) == ()


# --- hostile files ----------------------------------------------------------------------------


def patched(data: bytes, offset: int, layout: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(layout, changed, offset, *values)
    return bytes(changed)


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


# --- files of this machine --------------------------------------------------------------------


@pytest.mark.skipif(not LIBSSL.exists(), reason=f"{LIBSSL} is not there")
def test_the_library_of_this_machine() -> None:
    found = openssl.sites(LIBSSL)
    programs = {site.program for site in found}
    assert "tl_ssl_free" in programs
    assert any(program.startswith("tl_ssl_read") for program in programs)
    assert any(program.startswith("tl_ssl_write") for program in programs)
    assert not any(site.dear for site in found)


def test_a_large_program_costs_as_little(capsys: pytest.CaptureFixture[str]) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    path = Path(node).resolve()
    took = min(_seconds(path) for _ in range(5))
    with capsys.disabled():
        print(f" [{path.stat().st_size >> 20} MB: {took * 1e6:.0f} µs]", end="")
    if not openssl.sites(path):
        pytest.skip("this node uses the system's libssl")
    assert took < 0.005
    assert not any(site.dear for site in openssl.sites(path))


def _seconds(path: Path) -> float:
    started = time.perf_counter()
    openssl.sites(path)
    return time.perf_counter() - started


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(GOOD)
    fd = os.open(path, os.O_RDONLY)
    try:
        before = len(list(Path("/proc/self/fd").iterdir()))
        assert Elf.open(fd) is not None
        assert openssl.sites_of(fd) == INNER
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        os.close(fd)
