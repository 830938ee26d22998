"""How far a process's struct pthread begins before its thread pointer, where each glibc differs.

On arm64 struct pthread ends at the thread pointer, and its size is in a variable that glibc has for
debuggers (nptl_db) and exports since 2.34.
"""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from pathlib import Path

from throughline.probes import arch, mappings

_LIBRARY = re.compile(r".*/libc(\.so\.6|-2\.\d+\.so)")
_SIZE = "_thread_db_sizeof_pthread"
_MAX_BYTES = 1 << 14


def pthread_bytes(pid: int, *, proc: Path) -> int | None:
    """The size of struct pthread in a process; None where its C library does not say so.

    Raises OSError and MalformedError: the process and its files belong to others.
    """
    for mapping in mappings.executed(proc, pid, Counter()):
        if not _LIBRARY.fullmatch(mapping.name):
            continue
        held = mappings.locate(proc, pid, mapping)
        try:
            file = mappings.open_file(f"/proc/self/fd/{held}")
        finally:
            os.close(held)
        try:
            return _size(file)
        finally:
            os.close(file)
    return None


def _size(file: int) -> int | None:
    elf = arch.open_elf(file)
    address = elf.variables((_SIZE,)).get(_SIZE) if elf else None
    offset = elf.offset(address) if elf and address else None
    if elf is None or offset is None:
        return None
    (size,) = struct.unpack("<I", elf.read(offset, 4))
    return int(size) if 0 < size <= _MAX_BYTES else None
