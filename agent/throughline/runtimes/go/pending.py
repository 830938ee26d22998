"""Go programs that are being analysed, in a thread: a large one takes a second."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from throughline.probes.provider import Answer
from throughline.runtimes.go import analysis
from throughline.runtimes.go.program import Program
from throughline.runtimes.go.starts import Starts

FORGET_SECONDS = 30.0  # after the last call of `ask` for a program
GIVE_WAY_SECONDS = 5.0  # the same where there is no room for another: `ask` comes each second
MAX_PENDING = 32  # programs, each of which is held open
_Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Analysed:
    """A file with a Go program, and what the analysis has found."""

    program: Program
    functions: Starts
    digest: str  # of the file: its build id may be that of another


@dataclass(slots=True)
class _Pending:
    future: Future[Analysed | None]
    asked: float  # the time of the last `ask`


class PendingAnalyses:
    """Analyses that run, and results that nobody has asked for yet."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pending: dict[_Version, _Pending] = {}
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="go")

    def ask(self, fd: int) -> Analysed | Answer:
        """The result for an open file; NOT_MINE for one that is no Go program, else LATER.

        Raises what the analysis has raised.
        """
        version = _version(fd)
        pending = self._pending.get(version)
        if pending is None:
            if not analysis.is_go(fd):
                return Answer.NOT_MINE
            if len(self._pending) >= MAX_PENDING:
                self.forget(GIVE_WAY_SECONDS)  # those of processes that have ended
            if len(self._pending) < MAX_PENDING:
                self._pending[version] = _Pending(self._begin(fd), self._clock())
            return Answer.LATER
        pending.asked = self._clock()
        if not pending.future.done():
            return Answer.LATER
        del self._pending[version]
        return pending.future.result() or Answer.NOT_MINE

    def forget(self, seconds: float = FORGET_SECONDS) -> None:
        """Drops the analyses that nobody has asked for in the last `seconds`."""
        now = self._clock()
        for version, pending in list(self._pending.items()):
            future = pending.future
            if now - pending.asked > seconds and (future.done() or future.cancel()):
                del self._pending[version]

    def close(self) -> None:
        """Stops the analysis that runs."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, fd: int) -> Future[Analysed | None]:
        """Starts the analysis of a file, which is held open until that is done or dropped."""
        held = os.dup(fd)
        future = self._pool.submit(_analyse, held, self._stop)
        future.add_done_callback(lambda _: os.close(held))
        return future


def _version(fd: int) -> _Version:
    """Differs when the file has been written to: then the result is not true any more."""
    status = os.fstat(fd)
    changed = status.st_mtime_ns, status.st_ctime_ns
    return (status.st_dev, status.st_ino, status.st_size, *changed)


def _analyse(fd: int, stop: threading.Event) -> Analysed | None:
    program = analysis.analyse(fd, stop)
    if program is None:
        return None
    return Analysed(program, Starts(fd, stop), analysis.digest(fd, stop))
