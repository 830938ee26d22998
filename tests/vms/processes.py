"""Processes of a run: named by id and start time, so that a reused id is never taken for ours."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from tests.fixtures.waiting import until
from tests.fleet.hosts import start_time

END_SECONDS = 20.0

Process = tuple[int, int]


def identify(pid: int) -> Process:
    """A process as it is put on record."""
    return pid, start_time(pid)


def _field(pid: int, name: str) -> str:
    """A field of /proc/PID/status; "" when the process is gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return line.split()[1]
    return ""


def alive(process: Process) -> bool:
    """Whether a process still runs; a zombie does not."""
    pid, started = process
    return start_time(pid) == started != 0 and _field(pid, "State") not in ("Z", "X", "")


def children(pid: int) -> list[int]:
    """The processes whose parent is `pid`."""
    found = (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))
    return [one for one in found if _field(one, "PPid") == str(pid)]


def tree(pid: int) -> list[Process]:
    """A process and all its descendants, itself first."""
    return [identify(pid), *(one for child in children(pid) for one in tree(child))]


def end(victims: list[Process]) -> None:
    """Kills processes and waits until they are gone. Raises TimeoutError when they outlive it."""

    def killed() -> list[Process]:
        left = [process for process in victims if alive(process)]
        for pid, _ in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left

    until(killed, enough=lambda left: not left, seconds=END_SECONDS)


def end_tree(process: Process) -> None:
    """Kills a process and all that it started and that is still below it."""
    if not alive(process):
        return
    with suppress(ProcessLookupError):
        os.kill(process[0], signal.SIGSTOP)  # so that it starts nothing in between
    end(tree(process[0]))
