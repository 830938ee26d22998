"""What a process executes, and whether it still executes the same.

The kernel chooses 16 random bytes in each execve(), and tells the program where they are: AT_RANDOM
of getauxval(3). While the process's memory has them, it executes the same.

The vector with AT_RANDOM is read on the process's stack, since /proc/PID/auxv belongs to the
process's user, and CAP_SYS_PTRACE does not open the files of others. From where /proc/PID/stat says
that the stack begins, execve() puts there the number of arguments, pointers to them and to the
environment, each list with a 0 behind it, and the vector (System V ABI, "Process Initialization").
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from throughline.host.memory import Memory

_AT_RANDOM = 25
_PAIR, _WORD = struct.Struct("<QQ"), struct.Struct("<Q")
_MAX_VECTOR = 4096
_MAX_POINTERS = 1 << 17  # of arguments, and of the environment: 1 MB each
_CHUNK = 4096
_MAX_ARGUMENTS = 16 << 10
_MAX_STAT = 4096
_START_OF_STACK = 28 - 3  # the field of proc_pid_stat(5), counted behind the name


def arguments(pid: int, *, proc: Path) -> list[str]:
    """The arguments of a process, or the title that it gives itself. Raises OSError."""
    return os.fsdecode(_read(pid, "cmdline", _MAX_ARGUMENTS, proc)).rstrip("\0").split("\0")


def stat(pid: int, *, proc: Path) -> list[bytes]:
    """The fields of proc_pid_stat(5) behind the name: the first is field 3. Raises OSError.

    The name may hold anything, also parentheses.
    """
    return _read(pid, "stat", _MAX_STAT, proc).rpartition(b")")[2].split()


@dataclass(frozen=True, slots=True)
class Word:
    """The first 8 of the bytes."""

    address: int
    value: int


def find(pid: int, *, proc: Path) -> Word:
    """Raises OSError where the process cannot be read, or executes another program meanwhile."""
    stack = _start_of_stack(pid, proc)
    with Memory(pid, proc=proc) as memory:
        address = _random_at(memory, stack)
        word = Word(address, memory.word(address))
    if _start_of_stack(pid, proc) != stack:
        raise OSError(errno.EAGAIN, f"process {pid} executes another program")
    return word


def _start_of_stack(pid: int, proc: Path) -> int:
    """0 where the agent may not know it."""
    fields = stat(pid, proc=proc)
    if len(fields) <= _START_OF_STACK:
        raise OSError(errno.EINVAL, f"{proc}/{pid}/stat is short")
    return int(fields[_START_OF_STACK])


def _random_at(memory: Memory, stack: int) -> int:
    """AT_RANDOM of a process, 0 where it has none."""
    count = memory.word(stack)
    if count > _MAX_POINTERS:
        raise OSError(errno.EINVAL, f"{count} arguments")
    at = _behind_pointers(memory, stack + _WORD.size * (1 + count + 1))
    vector = memory.part(at, _MAX_VECTOR)
    for key, value in _PAIR.iter_unpack(vector[: len(vector) // _PAIR.size * _PAIR.size]):
        if key == _AT_RANDOM:
            return int(value)
        if not key:
            break
    return 0


def _behind_pointers(memory: Memory, at: int) -> int:
    """The address behind the 0 that ends a list of pointers."""
    for _ in range(0, _MAX_POINTERS * _WORD.size, _CHUNK):
        chunk = memory.part(at, _CHUNK)
        words = chunk[: len(chunk) // _WORD.size * _WORD.size]
        for (word,) in _WORD.iter_unpack(words):
            at += _WORD.size
            if not word:
                return at
        if not words:
            break
    raise OSError(errno.EINVAL, f"a list of pointers does not end before {at:#x}")


def _read(pid: int, name: str, size: int, proc: Path) -> bytes:
    """At most `size` bytes. Raises OSError."""
    fd = os.open(f"{proc}/{pid}/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)
