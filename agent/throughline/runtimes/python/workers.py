"""Tells the programs which processes run a server of threads, or work at jobs (servers.py).

What a process runs is its own word, and is used for this process alone. A word of its memory shows
the programs whether it still runs that (host/executed.py).
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from throughline.bpf import abi
from throughline.bpf.runtimes import Entry, Runtimes
from throughline.elf.elf import MalformedError
from throughline.host import executed
from throughline.probes import arch, mappings, procfs
from throughline.probes.provider import Probed, Process
from throughline.runtimes.looks import Looks
from throughline.runtimes.python import servers
from throughline.steps import Turns

_KIND = abi.RuntimeKind.RUNTIME_PYTHON
_WORKERS = abi.RuntimeFlags.RUNTIME_WORKERS
_SETTLED = abi.RuntimeFlags.RUNTIME_SETTLED
# Files that are mapped where many requests are served on one thread.
_GREENLET = re.compile(r"_?greenlet\b.*\.so")
_LOOP = re.compile(r"(loop\..*\.so|ld-musl-.*)")  # uvloop; without glibc no context is found


@dataclass(slots=True)
class _Seen:
    """A process that was looked at."""

    process: Process
    looks: Looks


class Workers:
    """The processes of Python, and which of them run a server of threads."""

    def __init__(
        self,
        runtimes: Runtimes,
        failures: Counter[str],
        proc: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runtimes = runtimes
        self._failures = failures
        self._proc = proc
        self._clock = clock
        self._seen: dict[int, _Seen] = {}  # by process id

    def tick(self, pythons: Sequence[Probed], greenlets: Collection[Probed]) -> Turns[None]:
        """Looks at the processes that map these files. `greenlets`: the probed ones."""
        current = {process.pid: process for each in pythons for process in each.processes}
        for pid in [pid for pid, seen in self._seen.items() if current.get(pid) != seen.process]:
            del self._seen[pid]
        switching = {process.pid for each in greenlets for process in each.processes}
        now = self._clock()
        for each in pythons:
            for process in each.processes:
                seen = self._seen.setdefault(process.pid, _Seen(process, Looks(now)))
                if seen.looks.is_due(now):
                    self._look(each, process, process.pid in switching)
                    yield

    def _look(self, python: Probed, process: Process, switches: bool) -> None:
        try:
            entry, flags = None, 0
            words = executed.arguments(process.pid, proc=self._proc)
            if process.born and self._runs_threads(process.pid, words, switches):
                entry, flags = self._entry(python, process), _WORKERS
                if self._seen[process.pid].looks.is_settled(self._clock()):
                    flags |= _SETTLED
            elif process.born and (jobs := servers.works_at(words)):
                entry = self._entry(python, process)
                entry = entry and replace(entry, jobs=jobs)
            self._tell(process, entry, flags)
        except OSError:
            if (self._proc / str(process.pid)).exists():  # else it has ended
                self._failures["process_unreadable"] += 1
        except MalformedError:
            self._failures["process_unreadable"] += 1

    def _runs_threads(self, pid: int, words: Sequence[str], switches: bool) -> bool:
        """`switches`: it is seen how the process switches greenlets."""
        if not servers.are_threads(procfs.executable(self._proc, pid), words):
            return False
        unread: Counter[str] = Counter()
        for mapping in mappings.executed(self._proc, pid, unread):
            name = mapping.name.rpartition("/")[2]
            if _LOOP.fullmatch(name) or (_GREENLET.fullmatch(name) and not switches):
                return False
        return not unread

    def _entry(self, python: Probed, process: Process) -> Entry | None:
        """What the programs have to know of a process. None: its code is not where the file is."""
        elf = arch.open_elf(python.file)
        linked = elf.mapped_address(process.offset) if elf else None
        if linked is None:
            return None
        word = executed.find(process.pid, proc=self._proc)
        index = python.sites[0].cookie
        base = process.start - linked
        return Entry(_KIND, index, base, process.born, word.address, word.value)

    def _tell(self, process: Process, entry: Entry | None, flags: int) -> None:
        """The programs note in the entry what they see: it is written where it has to change."""
        known = self._runtimes.find(process.pid)
        if known and (known.kind, known.born) != (_KIND, process.born):
            known = None
        if entry is None:
            if known and (known.flags & _WORKERS or known.jobs):
                seen = known.flags & ~(_WORKERS | _SETTLED)
                self._runtimes.tell(process.pid, replace(known, flags=seen, jobs=0))
            return
        if known and (not known.check_at or known.check == entry.check):
            flags |= known.flags if flags else known.flags & ~(_WORKERS | _SETTLED)
        entry = replace(entry, flags=flags)
        if known != entry:
            self._runtimes.tell(process.pid, entry)
