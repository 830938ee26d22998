"""openat2(2): opens a path of a process as that process would, not as the agent would.

A symlink in a container that begins with a slash means the container's root. Looked up through
/proc/PID/root the kernel takes ours, and the agent would probe a library of the host.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from functools import cache

from throughline.kernel.prototypes import failure

_OPENAT2 = 437  # on every architecture, Linux 5.6
_HOW = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve
_NO_MAGICLINKS, _NO_SYMLINKS, _IN_ROOT = 0x02, 0x04, 0x10  # include/uapi/linux/openat2.h
_ATTEMPTS = 8


def below(root: int, name: str) -> int:
    """Opens `name` (O_PATH) with the directory `root` as the root: `..` does not leave it."""
    return _open(root, name, _IN_ROOT | _NO_MAGICLINKS)


def without_symlinks(name: str) -> int:
    """Opens an absolute path (O_PATH) in which no part is a symlink, else ELOOP."""
    return _open(-1, name, _NO_SYMLINKS)


def _open(directory: int, name: str, resolve: int) -> int:
    how = _HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, resolve)
    for _ in range(_ATTEMPTS):
        fd = _libc().syscall(_OPENAT2, directory, os.fsencode(name), how, len(how))
        if fd >= 0:
            return int(fd)
        if ctypes.get_errno() != errno.EAGAIN:  # else something was renamed meanwhile
            break
    raise failure("openat2")


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    libc.syscall.argtypes = [
        ctypes.c_long,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    return libc
