"""The random bytes of an execve(), found on the stack of a process."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.fixtures import started
from throughline.host import executed

PROC = Path("/proc")


@pytest.mark.parametrize(("arguments", "environment"), [(0, 0), (1, 0), (3, 511), (5000, 20000)])
def test_the_stack_of_execve(tmp_path: Path, arguments: int, environment: int) -> None:
    (tmp_path / "7").mkdir()
    started.write(tmp_path / "7", 0xABCD, arguments=arguments, environment=environment)
    assert executed.find(7, proc=tmp_path) == executed.Word(started.RANDOM_AT, 0xABCD)


@pytest.mark.parametrize("environment", [{}, {"A": "1"}, {f"V{n}": "x" * 50 for n in range(999)}])
def test_it_is_the_word_that_the_kernel_names(environment: dict[str, str]) -> None:
    with subprocess.Popen(["sleep", "60"], env=environment | {"PATH": os.environ["PATH"]}) as child:
        try:
            while b"sleep" not in (PROC / str(child.pid) / "cmdline").read_bytes():
                time.sleep(0.01)
            vector = (PROC / str(child.pid) / "auxv").read_bytes()
            named = dict(struct.iter_unpack("<QQ", vector))
            found = executed.find(child.pid, proc=PROC)
            assert found.address == named[25]  # AT_RANDOM
            assert found == executed.find(child.pid, proc=PROC)
            assert found.value != executed.find(os.getpid(), proc=PROC).value
        finally:
            child.kill()


@pytest.mark.parametrize("stack", [b"", b"\xff" * 4096, b"\1" + bytes(7) + b"\1" * 4096])
def test_a_stack_that_is_none(tmp_path: Path, stack: bytes) -> None:
    (tmp_path / "7").mkdir()
    started.write(tmp_path / "7", 1)
    (tmp_path / "7" / "mem").write_bytes(bytes(0x1000) + stack)
    with pytest.raises(OSError, match=r"no memory|pointers|arguments"):
        executed.find(7, proc=tmp_path)
