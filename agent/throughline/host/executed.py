"""What a process executes, and whether it still executes the same.

The kernel chooses 16 random bytes in each execve(), and tells the program where they are: AT_RANDOM
of getauxval(3). While the process's memory has them, it executes the same.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from throughline.host.memory import Memory

_AT_RANDOM = 25
_PAIR = struct.Struct("<QQ")
_MAX_VECTOR = 4096
_MAX_ARGUMENTS = 16 << 10


def arguments(pid: int, *, proc: Path) -> list[str]:
    """The arguments of a process, or the title that it gives itself. Raises OSError."""
    return os.fsdecode(_read(pid, "cmdline", _MAX_ARGUMENTS, proc)).rstrip("\0").split("\0")


@dataclass(frozen=True, slots=True)
class Word:
    """The first 8 of the bytes."""

    address: int
    value: int


def find(pid: int, *, proc: Path) -> Word:
    """Raises OSError where the process cannot be read."""
    vector = _read(pid, "auxv", _MAX_VECTOR, proc)
    pairs = dict(_PAIR.iter_unpack(vector[: len(vector) // _PAIR.size * _PAIR.size]))
    address = pairs.get(_AT_RANDOM, 0)
    with Memory(pid, proc=proc) as memory:
        return Word(address, memory.word(address))


def _read(pid: int, name: str, size: int, proc: Path) -> bytes:
    """At most `size` bytes. Raises OSError."""
    fd = os.open(f"{proc}/{pid}/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)
