"""Programs that the `go` of this machine builds: the analysis and DWARF say the same.

The witness is a program of Go's own library debug/dwarf, which reads what the compiler wrote about
the very same structs and functions.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.fixtures import goprogram
from tests.fixtures.go.look import look
from throughline.probes import arch
from throughline.runtimes.go import layouts
from throughline.runtimes.go.rtypes import Types
from throughline.runtimes.go.wanted import FEATURES, split

KNOWN = (
    "goroutines",
    "http_client",
    "http_server",
    "http2_client",
    "http2_server",
    "http_write",
    "http2_write",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return goprogram.build(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def witness(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, int]:
    """Offsets of fields and addresses of functions, as DWARF has them."""
    program = look(whole)
    names = {split(name)[0] for name in program.offsets} | set(program.sites)
    # what is known under another name in this release
    names |= {name.replace("net/http.http2", "net/http/internal/http2.") for name in names}
    reader = goprogram.build(tmp_path_factory.mktemp("witness"), source=goprogram.WITNESS)
    lines = subprocess.run(
        [reader, whole, *names], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    return {name: int(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_all_of_net_http_is_on(whole: Path) -> None:
    program = look(whole)
    assert not set(KNOWN) & set(program.missing), program.missing
    assert program.path == "example.com/program"
    assert program.build_id
    assert set(program.sources.values()) == {"types"}
    assert not any(site.single_stepped for site in program.sites.values())


def test_offsets_are_those_of_dwarf(whole: Path, witness: Mapping[str, int]) -> None:
    compared = 0
    for name, offset in look(whole).offsets.items():
        struct, path = split(name)
        if "." not in path and name in witness:
            compared += 1
            assert witness[name] == offset, (name, struct)
    assert compared > 30


def test_functions_are_those_of_dwarf(whole: Path, witness: Mapping[str, int]) -> None:
    program = look(whole)
    fd = os.open(whole, os.O_RDONLY)
    try:
        elf = arch.open_elf(fd)
        assert elf is not None
        starts = {name: elf.offset(witness[name], executable=True) for name in program.sites}
    finally:
        os.close(fd)
    for name, site in program.sites.items():
        start = starts[name]
        assert start is not None
        assert start <= site.offset <= start + 16


def test_nothing_is_lost_without_symbols(whole: Path, tmp_path: Path) -> None:
    stripped = goprogram.build(tmp_path / "stripped", "-ldflags=-s -w")
    one, other = look(whole), look(stripped)
    assert other.offsets == one.offsets
    assert other.sites.keys() == one.sites.keys()
    assert other.types.keys() == one.types.keys()
    # nor without sections
    data = bytearray(stripped.read_bytes())
    data[40:48] = bytes(8)
    data[58:64] = bytes(6)
    bare = tmp_path / "bare"
    bare.write_bytes(data)
    without = look(bare)
    assert (without.sites, without.types, without.offsets) == (
        other.sites,
        other.types,
        other.offsets,
    )


def test_dwarf_has_what_the_types_lack(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without type data all is found in DWARF, and nothing is different."""
    expected = look(whole)
    monkeypatch.setattr(Types, "find", lambda self, wanted: {})
    started = time.process_time()
    program = look(whole)
    assert time.process_time() - started < 2
    assert set(program.sources.values()) == {"dwarf"}
    needed = {name for name in KNOWN for name in _offsets(name)}
    assert program.offsets == {name: expected.offsets[name] for name in needed}
    assert program.missing["http_client"] == "no type *net.TCPConn"


def _offsets(feature: str) -> set[str]:
    return {group[0] for each in FEATURES if each.name == feature for group in each.offsets}


def test_dwarf_is_not_read_where_the_types_have_it_all(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("DWARF was read")

    monkeypatch.setattr(layouts, "Dwarf", read)
    assert set(look(whole).sources.values()) == {"types"}


def test_it_costs_little(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    look(whole)
    started = time.process_time()
    look(whole)
    took = time.process_time() - started
    with capsys.disabled():
        print(f" [{whole.stat().st_size >> 20} MB: {took * 1000:.0f} ms]", end="")
    assert took < 0.5
