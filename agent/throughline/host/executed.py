"""Whether a process still executes the program that it was seen to execute.

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


@dataclass(frozen=True, slots=True)
class Word:
    """The first 8 of the bytes."""

    address: int
    value: int


def find(pid: int, *, proc: Path) -> Word:
    """Raises OSError where the process cannot be read."""
    fd = os.open(f"{proc}/{pid}/auxv", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        vector = os.read(fd, _MAX_VECTOR)
    finally:
        os.close(fd)
    pairs = dict(_PAIR.iter_unpack(vector[: len(vector) // _PAIR.size * _PAIR.size]))
    address = pairs.get(_AT_RANDOM, 0)
    with Memory(pid, proc=proc) as memory:
        return Word(address, memory.word(address))
