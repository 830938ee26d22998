"""The stack of BPF programs: 512 bytes for a chain of calls, and older kernels round up more."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[3] / "build"
MAX_STACK_BYTES = 512  # MAX_BPF_STACK
# Each frame is rounded up to this: check_max_stack_depth() in kernel/bpf/verifier.c. Linux 6.9 and
# later round up less where there is a JIT.
ROUNDED_BYTES = 32


@cache
def disassembled(path: Path) -> dict[str, tuple[int, frozenset[str]]]:
    """Function -> the bytes of its frame, and the functions that it calls."""
    run = subprocess.run(
        ["llvm-objdump", "-dr", str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    frames: dict[str, int] = {}
    calls: dict[str, list[tuple[str, int] | str]] = {}  # by place, where there is no name
    places: dict[tuple[str, int], str] = {}  # section, number of the instruction -> function
    pointers: set[str] = set()  # registers that hold the end of the stack, r10
    section = name = ""
    distance = 0  # of the last call, in instructions
    for line in run.stdout.splitlines():
        if found := re.match(r"Disassembly of section (.*):", line):
            section = found[1]
        elif found := re.match(r"([0-9a-f]+) <(\w+)>:", line):
            if not found[2].startswith("LBB"):
                name = found[2]
                frames[name], calls[name] = 0, []
                places[section, int(found[1], 16) // 8] = name
        elif found := re.search(r"R_BPF_64_32\s+(\S+)", line):
            # to a function, or to a place in another section: see lib/bpf/libbpf.c
            calls[name][-1] = found[1] if found[1] != ".text" else (".text", distance + 1)
        elif found := re.match(r"\s*(\d+):\s+85 10 00 00 ((?:[0-9a-f]{2} ?){4})", line):
            distance = int.from_bytes(bytes.fromhex(found[2]), "little", signed=True)
            calls[name].append((section, int(found[1]) + 1 + distance))
        for used in re.findall(r"r10 - (0x[0-9a-f]+|\d+)", line):
            frames[name] = max(frames[name], int(used, 0))
        if found := re.search(r"\b(r\d+) = r10$", line):
            pointers.add(found[1])
        elif found := re.search(r"\b(r\d+) \+= -(0x[0-9a-f]+|\d+)", line):
            if found[1] in pointers:
                frames[name] = max(frames[name], int(found[2], 0))
        elif found := re.search(r"\b[rw](\d+) = ", line):
            pointers.discard(f"r{found[1]}")
    return {
        name: (
            frames[name],
            frozenset(one if isinstance(one, str) else places[one] for one in calls[name]),
        )
        for name in frames
    }


def deepest(path: Path, name: str) -> tuple[int, tuple[str, ...]]:
    """The most stack that a chain of calls from this function takes, and the chain."""
    functions = disassembled(path)
    frame, calls = functions[name]
    own = max(ROUNDED_BYTES, -(-frame // ROUNDED_BYTES) * ROUNDED_BYTES)
    below: tuple[int, tuple[str, ...]] = (0, ())
    for other in calls & functions.keys():
        below = max(below, deepest(path, other))
    return own + below[0], (f"{name} {frame}", *below[1])


def objects() -> list[Path]:
    return sorted(BUILD.glob("bpf-*/*.bpf.o"))


@pytest.mark.skipif(shutil.which("llvm-objdump") is None, reason="llvm-objdump is not installed")
@pytest.mark.parametrize("path", objects(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_chains_of_calls_fit_the_stack(path: Path) -> None:
    functions = disassembled(path)
    assert functions
    assert any(frame for frame, _ in functions.values())
    for name in functions:
        needed, chain = deepest(path, name)
        assert needed <= MAX_STACK_BYTES, f"{needed} bytes: {' -> '.join(chain)}"
