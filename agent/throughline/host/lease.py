"""Leases on files: who opens one for writing waits until we have let go of it (fcntl(2)).

The kernel grants them to a file's owner and to CAP_LEASE. It waits /proc/sys/fs/lease-break-time
seconds, 45 where nobody has changed that, and goes on then whether we have let go or not. What is
executed is not opened for writing at all (ETXTBSY); renaming and removing a file ask nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import signal


class Lease:
    """On the open file behind a descriptor, until that is closed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def is_wanted(self) -> bool:
        """Does somebody wait, or has not waited any longer?"""
        return fcntl.fcntl(self._fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK

    def give_back(self) -> None:
        with contextlib.suppress(OSError):  # EAGAIN: the kernel has waited long enough and took it
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def take(fd: int) -> Lease | None:
    """None where there is none to be had: by these privileges, or on this file system.

    Raises BlockingIOError while somebody has the file open for writing.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # nobody handles it, and nobody has to
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        raise
    except OSError:
        return None
    return Lease(fd)
