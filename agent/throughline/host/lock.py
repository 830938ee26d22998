"""The lock that allows one agent for each bpffs: an exclusive flock(2) on its directory.

The kernel releases the lock when its holder dies. When the agent executes a new release in place,
the new release inherits the lock, so no other agent can take it meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

_INHERITED = "THROUGHLINE_LOCK_FD"


class LockedError(OSError):
    """Another agent serves this bpffs."""


def acquire(bpffs: Path) -> int:
    """Takes the lock; returns the descriptor that holds it. Raises LockedError."""
    inherited = os.environ.pop(_INHERITED, None)
    if inherited is not None and _is_same(int(inherited), bpffs):
        os.set_inheritable(int(inherited), False)
        return int(inherited)
    directory = os.open(bpffs, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = _holder(os.fstat(directory))
        os.close(directory)
        raise LockedError(
            errno.EBUSY, f"another agent{f' (pid {pid})' if pid else ''} serves {bpffs}"
        ) from None
    except BaseException:
        os.close(directory)
        raise
    return directory


def hand_over(descriptor: int) -> dict[str, str]:
    """Lets the next execve(2) inherit the lock; returns the environment variable that it needs."""
    os.set_inheritable(descriptor, True)
    return {_INHERITED: str(descriptor)}


def _is_same(descriptor: int, bpffs: Path) -> bool:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    wanted = bpffs.stat()
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)


def _holder(found: os.stat_result) -> int | None:
    """The id of the process that holds a flock, from /proc/locks, see proc(5)."""
    wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == wanted:
                return int(fields[4])
    except OSError:
        pass
    return None
