"""Processes as /proc and cgroup.procs show them."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from throughline.host import executed
from throughline.services.cgroups import GONE
from throughline.steps import Turns

_EACH_TURN = 32  # cgroups, about 1 ms


def pids(cgroups: Iterable[str], failures: Counter[str]) -> Turns[set[int]]:
    """The processes that are in these cgroups themselves, not in cgroups below them."""
    found: set[int] = set()
    for count, path in enumerate(cgroups, 1):
        try:
            found.update(map(int, _read(f"{path}/cgroup.procs").split()))
        except OSError as error:
            # EOPNOTSUPP: the processes of a threaded cgroup are listed by its parent
            if error.errno not in GONE | {errno.EOPNOTSUPP}:
                failures["cgroup_unreadable"] += 1
        if count % _EACH_TURN == 0:
            yield
    return found - {0}  # 0: a process of a PID namespace that is not below ours


def executable(proc: Path, pid: int) -> str:
    """The program that a process executes.

    "" for a process that has ended, a kernel thread, and a process that we may not look at.
    """
    try:
        return os.readlink(f"{proc}/{pid}/exe")  # noqa: PTH115 - each second, for each process
    except OSError:
        return ""


def identity(proc: Path, pid: int) -> tuple[str, int]:
    """Differs when a process executes another program, or when its number is another process's.

    The program, and when the process began, in clock ticks since boot (field 22 of proc(5) stat).
    """
    try:
        started = int(executed.stat(pid, proc=proc)[22 - 3])
    except (OSError, IndexError, ValueError):
        started = 0
    return executable(proc, pid), started


def inode(proc: Path, pid: int) -> tuple[int, int]:
    """Inode number and ctime of /proc/PID: while they are the same, the process is the same.

    The kernel makes the inode anew when the number goes to another process, and sometimes for the
    same process. To ask for it takes a tenth of the time that `identity` takes.
    """
    try:
        status = os.stat(f"{proc}/{pid}")  # noqa: PTH116 - each second, for each process
    except OSError:
        return 0, 0
    return status.st_ino, status.st_ctime_ns


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 - each second, for each cgroup
        return stream.read()
