"""The memory of another process, read by process_vm_readv(2), or through /proc/PID/mem.

That file is for the process's own user. The system call asks for CAP_SYS_PTRACE alone.

The process belongs to others: what is read is not to be trusted, and may change or end at any time.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

_WORD, _HALF = struct.Struct("<Q"), struct.Struct("<i")
_MAX_ADDRESS = (1 << 48) - 1  # of arm64; x86-64 has half of that
_NAME_BYTES = 64


class _Piece(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("start", ctypes.c_void_p), ("size", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.argtypes = (
    ctypes.c_int,
    ctypes.POINTER(_Piece),
    ctypes.c_ulong,
    ctypes.POINTER(_Piece),
    ctypes.c_ulong,
    ctypes.c_ulong,
)
_libc.process_vm_readv.restype = ctypes.c_ssize_t


class Memory:
    """A process's memory. A context manager.

    Raises OSError where there is nothing to be read: at the latest when something is.
    """

    def __init__(self, pid: int, *, proc: Path = Path("/proc")) -> None:
        self._pid = pid
        try:
            self._fd = os.open(f"{proc}/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:  # another user's, see above
            self._fd = -1

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def _read(self, address: int, size: int) -> bytes:
        """At most `size` bytes."""
        if self._fd >= 0:
            return os.pread(self._fd, size, address)
        buffer = ctypes.create_string_buffer(size)
        local = _Piece(ctypes.addressof(buffer), size)
        remote = _Piece(address, size)
        got = _libc.process_vm_readv(self._pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        if got < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"process_vm_readv: {os.strerror(number)}")
        return buffer.raw[:got]

    def part(self, address: int, size: int) -> bytes:
        """At most `size` bytes: fewer where the memory ends."""
        return self._read(address, size) if 0 < address <= _MAX_ADDRESS else b""

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes."""
        data = self.part(address, size)
        if len(data) < size:
            raise OSError(errno.EFAULT, f"no memory at {address:#x}+{size:#x}")
        return data

    def word(self, address: int) -> int:
        """64 bits without a sign."""
        return word_at(self.read(address, _WORD.size), 0)

    def half(self, address: int) -> int:
        """32 bits with a sign."""
        value: int = _HALF.unpack(self.read(address, _HALF.size))[0]
        return value

    def name(self, address: int) -> str:
        """A short text that ends with a zero: up to 63 characters of ASCII, others replaced."""
        text, zero, _ = self.part(address, _NAME_BYTES).partition(b"\0")
        if not zero:
            raise OSError(errno.EFAULT, f"no text at {address:#x}")
        return text.decode("ascii", "replace")


def word_at(data: bytes, at: int) -> int:
    """The word of eight bytes at this place of what was read."""
    value: int = _WORD.unpack_from(data, at)[0]
    return value
