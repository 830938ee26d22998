"""Asks the process `throughline-probes` for uprobes: the other side is probes/opener.py."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from pathlib import Path

from throughline.probes.opener import ALL, ANSWER, REQUEST, receive

# A trial on a host without an agent, and tests, have a socket of their own.
SOCKET = "THROUGHLINE_PROBES_SOCKET"
DEFAULT = "/run/throughline-probes.socket"
ANSWER_SECONDS = 5.0  # systemd may have to start the process
FIRST_SECONDS = 45.0  # the agent's trial at its start, on a host that has just booted
PAUSE_SECONDS = 30.0


class Opening:
    """The way to the process. It keeps no connection: the process ends when nobody asks.

    The agent waits meanwhile. So a process that gave no answer is not asked again for a while.
    """

    def __init__(self) -> None:
        self._silent_until = 0.0
        self._seconds = FIRST_SECONDS

    def wake(self) -> None:
        """Lets systemd start the process, where there is its socket, and does not wait for it."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.setblocking(False)
            with contextlib.suppress(OSError):  # the agent's trial will tell
                connection.connect(os.environ.get(SOCKET, DEFAULT))

    def open_uprobe(self, path: str | Path, offset: int, *, returns: bool, pid: int | None) -> int:
        """As perfevent.open_uprobe. Raises OSError, also where the process gives no answer."""
        if time.monotonic() < self._silent_until:
            raise OSError(errno.ETIMEDOUT, "throughline-probes gave no answer before")
        # Not the caller's descriptor: a lease ends with the last copy of the one that holds it.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        request = REQUEST.pack(offset, ALL if pid is None else pid, returns, b"")
        seconds, self._seconds = self._seconds, ANSWER_SECONDS
        try:
            return _ask(file, request, seconds=seconds)
        except TimeoutError:
            self._silent_until = time.monotonic() + PAUSE_SECONDS
            text = f"throughline-probes gave no answer in {seconds:.0f} s"
            raise OSError(errno.ETIMEDOUT, text) from None
        finally:
            os.close(file)


def _ask(file: int, request: bytes, *, seconds: float) -> int:
    where = os.environ.get(SOCKET, DEFAULT)
    events: list[int] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(seconds)
            connection.connect(where)
            socket.send_fds(connection, [request], [file])
            message, events, _flags = receive(connection, ANSWER.size)
    except TimeoutError:
        raise
    except OSError as error:
        text = f"throughline-probes ({where}): {os.strerror(error.errno or 0)}"
        raise OSError(error.errno, text) from None
    number = ANSWER.unpack(message)[0] if len(message) == ANSWER.size else errno.EPROTO
    if number == 0 and events:
        return events[0]
    for event in events:
        os.close(event)
    number = number or errno.EPROTO
    raise OSError(number, f"throughline-probes: {os.strerror(number)}")
