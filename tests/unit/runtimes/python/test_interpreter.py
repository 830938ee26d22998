"""Files with CPython in them: sites and layouts; hostile ones end soon, by an exception of ours."""

from __future__ import annotations

import contextlib
import os
import random
import time
from pathlib import Path

import pytest

from tests.fixtures import elffile
from throughline.bpf import abi
from throughline.elf.elf import MalformedError
from throughline.runtimes.python import interpreter
from throughline.runtimes.python.interpreter import Interpreter, UnsupportedError

ROOTS = (Path("/usr/bin"), Path("/usr/lib/x86_64-linux-gnu"), Path("/root/.pyenv/versions"))
PATTERNS = ("python3.[0-9]*", "libpython3.*.so.1.0", "*/lib/libpython3.*.so.1.0")


def look(path: Path) -> Interpreter | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        return interpreter.find(fd)
    finally:
        os.close(fd)


def installed() -> dict[Path, Interpreter]:
    found = {}
    for path in (path for root in ROOTS for one in PATTERNS for path in root.glob(one)):
        with contextlib.suppress(UnsupportedError):
            if (known := look(path)) is not None:
                found[path] = known
    return found


def test_what_is_installed() -> None:
    found = installed()
    if not found:
        pytest.skip("no CPython from 3.9 to 3.14 is installed")
    for path, known in found.items():
        assert known.version.split(".")[1] in path.name, path
        copied, freed = known.sites
        assert (copied.program, copied.returns) == ("tl_py_copied", True)
        assert (freed.program, freed.returns) == ("tl_py_freed", False)
        assert not copied.single_stepped and not freed.single_stepped, path
        assert len(known.packed) == abi.PYTHON_BINARY.size


@pytest.mark.parametrize("content", [b"#!/bin/sh\n", elffile.build(elffile.libssl())])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert look(path) is None


def test_an_older_python_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "libpython3.8.so"
    path.write_bytes(elffile.build({interpreter.COPY: elffile.PUSH}))
    with pytest.raises(UnsupportedError, match=r"before 3\.9"):
        look(path)


def test_one_that_hides_its_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "libpython3.9.so"
    names = (interpreter.COPY, "PyObject_CallNoArgs")
    path.write_bytes(elffile.build(dict.fromkeys(names, elffile.PUSH)))
    with pytest.raises(UnsupportedError, match="does not export"):
        look(path)


def test_damage(tmp_path: Path) -> None:
    """300 files with bytes changed at random where a real one has its tables."""
    found = installed()
    if not found:
        pytest.skip("no CPython from 3.9 to 3.14 is installed")
    source = min(found, key=lambda path: path.stat().st_size)
    chance = random.Random(14)
    data = source.read_bytes()
    path = tmp_path / "damaged"
    path.write_bytes(data)
    outcomes = set()
    with path.open("r+b") as file:
        for _ in range(300):
            places = [chance.randrange(1 << chance.randrange(6, 20)) for _ in range(8)]
            for place in places:
                os.pwrite(file.fileno(), chance.randbytes(8), place)
            started = time.process_time()
            try:
                known = interpreter.find(file.fileno())
                if known is not None:
                    assert all(site.offset < len(data) for site in known.sites)
                outcomes.add("found" if known else "none")
            except (MalformedError, UnsupportedError) as error:
                outcomes.add(type(error).__name__)
            assert time.process_time() - started < 1.0
            for place in places:
                os.pwrite(file.fileno(), data[place : place + 8], place)
    assert len(outcomes) >= 2, outcomes
