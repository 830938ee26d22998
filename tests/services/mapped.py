"""Maps libssl in an unusual way, calls SSL_free(NULL) on demand: HOW DIRECTORY LIBRARY.

LIBRARY is the path as the process is to see it. Each line of standard
input is a number of calls. The answer is the nanoseconds that one call took.
"""

from __future__ import annotations

import ctypes
import os
import ssl  # noqa: F401 - brings libssl's own libraries into the process
import sys
import time
from pathlib import Path

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000
SYS_PIVOT_ROOT, MNT_DETACH = 155, 2


def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    values = [value.encode() for value in (source, target, kind)]
    if libc.mount(*values, flags, data.encode()):
        number = ctypes.get_errno()
        raise OSError(number, f"mount {kind}: {os.strerror(number)}")


how, directory, name = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
if how in ("namespace", "container", "overlay"):
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", "/", "none", MS_REC | MS_PRIVATE, "")
if how in ("namespace", "container"):
    mount("root", directory, "tmpfs", 0, "")
    copy = Path(f"{directory}{name}")
    copy.parent.mkdir(parents=True)
    copy.write_bytes(Path(f"{directory}.so").read_bytes())
if how == "overlay":
    upper = Path(f"{directory}-{os.getpid()}")
    for part in ("upper", "work", "merged"):
        (upper / part).mkdir(parents=True)
    layers = f"lowerdir={directory},upperdir={upper}/upper,workdir={upper}/work"
    mount("overlay", f"{upper}/merged", "overlay", 0, layers)
    directory = f"{upper}/merged"
if how in ("container", "overlay"):
    os.chdir(directory)
    if libc.syscall(SYS_PIVOT_ROOT, b".", b".") or libc.umount2(b".", MNT_DETACH):
        raise OSError(ctypes.get_errno(), "pivot_root")
    os.chdir("/")
elif how != "here":
    os.chroot(directory)
    os.chdir("/")
library = ctypes.CDLL(name)
SSL_free = library.SSL_free
SSL_free.argtypes = [ctypes.c_void_p]
print("ready", flush=True)
for line in sys.stdin:
    calls = range(int(line))
    started = time.perf_counter_ns()
    for _ in calls:
        SSL_free(None)
    print((time.perf_counter_ns() - started) // max(len(calls), 1), flush=True)
