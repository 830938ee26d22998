"""Where a process's C library has struct pthread."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

import pytest

from throughline.bpf import abi
from throughline.elf.elf import MalformedError
from throughline.runtimes.python import clibrary
from throughline.runtimes.python.interpreter import Interpreter

PROC = Path("/proc")


def test_a_process_says_how_large_its_struct_pthread_is() -> None:
    known = ctypes.c_uint.in_dll(ctypes.CDLL("libc.so.6"), "_thread_db_sizeof_pthread").value
    assert clibrary.pthread_bytes(os.getpid(), proc=PROC) == known
    assert 1024 < known < 4096


def maps(proc: Path, library: Path, content: bytes) -> None:
    """A process that maps a file as its C library."""
    library.write_bytes(content)
    status = library.stat()
    device = f"{os.major(status.st_dev):x}:{os.minor(status.st_dev):x}"
    (proc / "7").mkdir()
    (proc / "7/root").symlink_to("/")
    (proc / "7/maps").write_text(f"1000-2000 r-xp 0 {device} {status.st_ino} {library}\n")


def test_a_library_that_is_none(tmp_path: Path) -> None:
    maps(tmp_path, tmp_path / "libc.so.6", b"not an ELF file")
    assert clibrary.pthread_bytes(7, proc=tmp_path) is None


def test_a_damaged_library(tmp_path: Path) -> None:
    head = Path("/lib/x86_64-linux-gnu/libc.so.6").read_bytes()[:4096]
    maps(tmp_path, tmp_path / "libc.so.6", head)
    with contextlib.suppress(MalformedError):
        assert clibrary.pthread_bytes(7, proc=tmp_path) is None


def test_a_process_without_glibc(tmp_path: Path) -> None:
    maps(tmp_path, tmp_path / "ld-musl-x86_64.so.1", b"")
    assert clibrary.pthread_bytes(7, proc=tmp_path) is None


def test_a_process_that_has_ended(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        clibrary.pthread_bytes(7, proc=tmp_path)


def test_programs_are_told() -> None:
    packed = abi.PYTHON_BINARY.pack(1, 2, 3, 4, 5, 6, 7, 0, 1)
    told = abi.PythonBinary(
        *abi.PYTHON_BINARY.unpack(Interpreter("3", (), packed, None).beside(1824))
    )
    assert told == abi.PythonBinary(1, 2, 3, 4, 5, 6, 7, 1824, 1)
