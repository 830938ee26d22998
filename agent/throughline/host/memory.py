"""The memory of another process, read through /proc/PID/mem.

The process belongs to others: what is read is not to be trusted, and may change or end at any time.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

_WORD, _HALF = struct.Struct("<Q"), struct.Struct("<i")
_MAX_ADDRESS = (1 << 47) - 1
_NAME_BYTES = 64


class Memory:
    """A process's memory. A context manager; raises OSError where there is nothing to be read."""

    def __init__(self, pid: int, *, proc: Path = Path("/proc")) -> None:
        self._fd = os.open(f"{proc}/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes."""
        data = b""
        if 0 < address <= _MAX_ADDRESS:
            data = os.pread(self._fd, size, address)
        if len(data) < size:
            raise OSError(errno.EFAULT, f"no memory at {address:#x}+{size:#x}")
        return data

    def word(self, address: int) -> int:
        """64 bits without a sign."""
        value: int = _WORD.unpack(self.read(address, _WORD.size))[0]
        return value

    def half(self, address: int) -> int:
        """32 bits with a sign."""
        value: int = _HALF.unpack(self.read(address, _HALF.size))[0]
        return value

    def name(self, address: int) -> str:
        """A short text that ends with a zero: up to 63 characters of ASCII, others replaced."""
        data = b""
        if 0 < address <= _MAX_ADDRESS:
            data = os.pread(self._fd, _NAME_BYTES, address)
        text, zero, _ = data.partition(b"\0")
        if not zero:
            raise OSError(errno.EFAULT, f"no text at {address:#x}")
        return text.decode("ascii", "replace")
