"""Where a thread of Ruby keeps what it executes."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.fixtures import elffile
from throughline.host.memory import Memory
from throughline.probes import arch
from throughline.runtimes.ruby.context import Context, find

PID, BASE = 7, 0x10000
MODULE = 16  # R_X86_64_DTPMOD64
FIRST, SECOND, THIRD = 0x100, 0x200, 0x300  # words with the number of the module


def look(
    tmp_path: Path,
    release: str,
    relocations: Sequence[tuple[int, int]],
    words: Mapping[int, int],
    *,
    exported: bool = False,
) -> Context | None:
    names = {"ruby_version": release.encode() + b"\0"}
    if exported:
        names["ruby_current_ec"] = bytes(8)
    path = tmp_path / "libruby.so"
    path.write_bytes(
        elffile.build(names, kind=1, thread_local=("ruby_current_ec",), relocations=relocations)
    )
    (tmp_path / str(PID)).mkdir()
    data = bytearray(BASE + 0x400)
    for address, word in words.items():
        struct.pack_into("<Q", data, BASE + address, word)
    (tmp_path / str(PID) / "mem").write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        elf = arch.open_elf(fd)
        assert elf is not None
        with Memory(PID, proc=tmp_path) as memory:
            return find(elf, memory, BASE)
    finally:
        os.close(fd)


def test_a_variable_that_is_exported(tmp_path: Path) -> None:
    """Its symbol is the first of two."""
    relocations = [(FIRST, MODULE), (SECOND, 1 << 32 | MODULE)]
    found = look(tmp_path, "3.1.2", relocations, {SECOND: 5}, exported=True)
    assert found == Context(31, 0x0005_0008_0008_0008)


def test_a_variable_without_a_symbol(tmp_path: Path) -> None:
    """It is one of those of the library."""
    relocations = [(FIRST, MODULE), (0x50, 8), (SECOND, MODULE)]
    words = {FIRST: 5, FIRST + 8: 0x10, SECOND: 5, SECOND + 8: 0x20}
    assert look(tmp_path, "3.3.8", relocations, words) == Context(33, 0x0005_0010_0020_0010)


@pytest.mark.parametrize("release", ["2.7.4", "3.5.0", "4.0.0", "three", ""])
def test_other_releases(tmp_path: Path, release: str) -> None:
    assert look(tmp_path, release, [(FIRST, MODULE)], {FIRST: 5}) is None


def test_no_module_is_asked_for(tmp_path: Path) -> None:
    """It is linked into the program."""
    assert look(tmp_path, "3.3.8", [(FIRST, 8)], {}) is None


def test_more_variables_than_fit(tmp_path: Path) -> None:
    slots = (FIRST, SECOND, THIRD, THIRD + 16)
    words = dict.fromkeys(slots, 5)
    assert look(tmp_path, "3.3.8", [(slot, MODULE) for slot in slots], words) is None


@pytest.mark.parametrize("words", [{}, {FIRST: 1 << 20}, {FIRST: 5, FIRST + 8: 1 << 20}])
def test_words_that_cannot_be(tmp_path: Path, words: Mapping[int, int]) -> None:
    assert look(tmp_path, "3.3.8", [(FIRST, MODULE)], words) is None
