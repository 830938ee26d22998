"""Go programs, looked into in a thread: a large one takes a second, and spans must not wait."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from throughline.probes.libraries import LaterError
from throughline.runtimes import go as golang
from throughline.runtimes.go import Program

FORGET_SECONDS = 30.0  # after nobody has asked for a program any more
GIVE_WAY_SECONDS = 5.0  # the same, once there is no room for another: all are asked for each second
MAX_WAITING = 32  # programs to be looked into, each of which is held open
_Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Analysed:
    """What is known of a file with a Go program."""

    program: Program
    functions: golang.Starts
    digest: str  # of the file: what it says of itself may be another's


@dataclass(slots=True)
class _Waiting:
    future: Future[Analysed | None]
    asked: float  # when somebody last did


class GoAnalysis:
    """Files that are looked into, and what was found until somebody asks again."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: dict[_Version, _Waiting] = {}
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="go")

    def ask(self, fd: int) -> Analysed | None:
        """None for what is no Go program. Raises LaterError, and what the analysis did."""
        version = _version(fd)
        waiting = self._waiting.get(version)
        if waiting is None:
            if not golang.is_go(fd):
                return None
            if len(self._waiting) >= MAX_WAITING:
                # of processes that have ended
                self.forget(GIVE_WAY_SECONDS)
            if len(self._waiting) >= MAX_WAITING:
                raise LaterError
            self._waiting[version] = _Waiting(self._begin(fd), self._clock())
            raise LaterError
        waiting.asked = self._clock()
        if not waiting.future.done():
            raise LaterError
        del self._waiting[version]
        return waiting.future.result()

    def forget(self, seconds: float = FORGET_SECONDS) -> None:
        """Gives up what nobody has asked for since so many seconds."""
        now = self._clock()
        for version, waiting in list(self._waiting.items()):
            future = waiting.future
            if now - waiting.asked > seconds and (future.done() or future.cancel()):
                del self._waiting[version]

    def close(self) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, fd: int) -> Future[Analysed | None]:
        """Looks into a file, which is held open until that is done or given up."""
        held = os.dup(fd)
        future = self._pool.submit(_analyse, held, self._stop)
        future.add_done_callback(lambda _: os.close(held))
        return future


def _version(fd: int) -> _Version:
    """Differs when the file has been written to: what was found in it holds no more."""
    status = os.fstat(fd)
    changed = status.st_mtime_ns, status.st_ctime_ns
    return (status.st_dev, status.st_ino, status.st_size, *changed)


def _analyse(fd: int, stop: threading.Event) -> Analysed | None:
    program = golang.analyse(fd, stop)
    if program is None:
        return None
    return Analysed(program, golang.Starts(fd, stop), golang.digest(fd, stop))
