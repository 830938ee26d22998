"""A uprobe as a perf event, see perf_event_open(2).

probes/opener.py runs this as root: it knows no other module of the agent.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from pathlib import Path

_SOURCE = Path("/sys/bus/event_source/devices/uprobe")
_EVENT = struct.Struct("<IIQ40xQQ40x")  # struct perf_event_attr, PERF_ATTR_SIZE_VER5
_NUMBERS = {"x86_64": 298, "aarch64": 241}  # of perf_event_open()
_CLOSE_ON_EXEC = 1 << 3  # PERF_FLAG_FD_CLOEXEC


def open_uprobe(path: str | Path, offset: int, *, returns: bool, pid: int | None) -> int:
    """Returns the descriptor of a uprobe, which does nothing yet, at a file's offset.

    In every process that maps the file now or later, or with `pid` in that one. The kernel keeps
    the file's inode, whatever becomes of the path. Raises OSError: ENOENT where the kernel has no
    uprobes or there is no such file, EACCES where it refuses them to this process.
    """
    kind = int((_SOURCE / "type").read_text())
    (bit,) = (_SOURCE / "format" / "retprobe").read_text().strip().partition(":")[2:]
    name = ctypes.create_string_buffer(os.fsencode(path))
    config = 1 << int(bit) if returns else 0
    # config; config1 is the address of the path, config2 the offset
    event = _EVENT.pack(kind, _EVENT.size, config, ctypes.addressof(name), offset)
    data = ctypes.create_string_buffer(event, len(event))
    # An event of all processes has to name a CPU, and still counts on every one.
    process, cpu = (-1, 0) if pid is None else (pid, -1)
    machine = platform.machine()
    if machine not in _NUMBERS:
        raise OSError(errno.ENOSYS, f"the number of perf_event_open() on {machine} is not known")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    opened = libc.syscall(_NUMBERS[machine], data, process, cpu, -1, _CLOSE_ON_EXEC)
    if opened < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"perf_event_open: {os.strerror(number)}")
    return int(opened)
