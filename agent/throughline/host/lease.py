"""Leases on files, see fcntl(2): a process that opens the file for writing waits for the holder.

The kernel grants a lease to the file's owner and with CAP_LEASE. A writer waits until the holder
gives the lease back, but at most /proc/sys/fs/lease-break-time seconds (45 by default). No lease is
needed for a program that runs: it cannot be opened for writing (ETXTBSY). Renaming and removing a
file do not wait for a lease.
"""

from __future__ import annotations

import contextlib
import fcntl
import signal


class Lease:
    """A lease on the open file behind a descriptor, until the descriptor is closed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def is_wanted(self) -> bool:
        """Returns whether a writer waits for the lease, or its wait has timed out."""
        return fcntl.fcntl(self._fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK

    def give_back(self) -> None:
        with contextlib.suppress(OSError):  # EAGAIN: the wait has timed out, and the lease is gone
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def take(fd: int) -> Lease | None:
    """Takes a lease; None when this user may not have one, or the file system has none.

    Raises BlockingIOError while a process has the file open for writing.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # this signal is ignored by default
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        raise
    except OSError:
        return None
    return Lease(fd)
