"""Where OpenSSL is probed: in libraries made by hand, and in those of this machine."""

from __future__ import annotations

import os
import shutil
import struct
import time
from pathlib import Path

import pytest

from tests.fixtures import elffile
from tests.fixtures.elffile import (
    ENDBR64,
    JE,
    PUSH,
    SUB,
    TEST_RDI,
    build,
    call,
    patched,
)
from tests.fixtures.openssl_sites import INNER, at, pair, sites
from throughline.tls import openssl

LIBSSL = Path("/usr/lib/x86_64-linux-gnu/libssl.so.3")


@pytest.mark.parametrize("table", ["gnu", "sysv"])
def test_the_inner_function_is_probed_where_the_outer_ones_are_single_stepped(
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
def test_a_function_that_begins_with_an_emulated_instruction_is_probed_itself(
    tmp_path: Path, begin: bytes
) -> None:
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
def test_a_single_stepped_one_says_so(tmp_path: Path, begin: bytes) -> None:
    data = build({"SSL_read": begin, "SSL_write": begin})
    assert sites(tmp_path, data) == (
        *pair("tl_ssl_read", at(0), single_stepped=True),
        *pair("tl_ssl_write", at(1), single_stepped=True),
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


def test_writes_that_go_by_the_linkage_table_are_seen_once(tmp_path: Path) -> None:
    """As in Debian's OpenSSL 3.5 for arm64."""
    functions = {
        **elffile.libssl(),
        "SSL_write_ex": call(b"\x49\x89\xc8\x31\xc9", here=4, there=8, jump=True),
        "SSL_write_ex2": call(SUB[:4], here=7, there=5),
        ".plt": b"\xff\x25\x00\x00\x00\x00",
    }
    assert sites(tmp_path, build(functions))[2:4] == pair("tl_ssl_write_x2", at(5))


def test_the_handshake_is_probed_too(tmp_path: Path) -> None:
    functions = {"SSL_read": PUSH, "SSL_write": PUSH, "SSL_do_handshake": ENDBR64 + PUSH}
    assert sites(tmp_path, build(functions))[4:] == pair("tl_ssl_shake", at(2) + 4, rare=True)


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
    assert {site.single_stepped for site in sites(tmp_path, build(only))} == {True}


def test_a_function_that_only_calls_the_other_has_no_site(tmp_path: Path) -> None:
    """As in LibreSSL: SSL_read_ex calls SSL_read, and each read would be seen twice."""
    functions = {"SSL_read": SUB, "SSL_read_ex": call(SUB[:4], here=1, there=0), "SSL_write": PUSH}
    assert sites(tmp_path, build(functions)) == (
        *pair("tl_ssl_read", at(0), single_stepped=True),
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


# --- files of this machine --------------------------------------------------------------------


@pytest.mark.skipif(not LIBSSL.exists(), reason=f"{LIBSSL} is not there")
def test_the_library_of_this_machine() -> None:
    found = openssl.sites(LIBSSL)
    programs = {site.program for site in found}
    assert "tl_ssl_free" in programs
    assert any(program.startswith("tl_ssl_read") for program in programs)
    assert any(program.startswith("tl_ssl_write") for program in programs)
    assert not any(site.single_stepped for site in found)


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
    assert not any(site.single_stepped for site in openssl.sites(path))


def _seconds(path: Path) -> float:
    started = time.perf_counter()
    openssl.sites(path)
    return time.perf_counter() - started
