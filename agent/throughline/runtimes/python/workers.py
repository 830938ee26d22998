"""Tells the programs which processes run a server of threads, or work at jobs.

Arguments say that (servers.py), or else what a thread is calling (acceptor.py). What a process runs
is its own word, and is used for this process alone. A word of its memory shows the programs whether
it still runs that (host/executed.py).
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from throughline.bpf import abi
from throughline.bpf.runtimes import NOWHERE, Entry, Runtimes
from throughline.elf.elf import MalformedError
from throughline.host import executed
from throughline.host.memory import Memory
from throughline.probes import arch, mappings, procfs
from throughline.probes.provider import Probed, Process
from throughline.runtimes.looks import Looks
from throughline.runtimes.python import acceptor, servers
from throughline.runtimes.python.acceptor import Acceptor
from throughline.runtimes.python.stack import Places, Stacks
from throughline.steps import Turns

_KIND = abi.RuntimeKind.RUNTIME_PYTHON
_WORKERS = abi.RuntimeFlags.RUNTIME_WORKERS
_SETTLED = abi.RuntimeFlags.RUNTIME_SETTLED
_OFTEN_SECONDS = 30.0  # a program serves when it has loaded what it needs
_TRIES, _MOST_TRIES = 5, 3  # its threads go on while they are looked at
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
        self._places: dict[int, tuple[Places, int]] = {}  # by index

    def learn(self, index: int, places: Places, pthread_at: int) -> None:
        """Where the file with this index keeps its threads.

        `pthread_at`: how far struct pthread begins before a thread pointer.
        """
        self._places[index] = places, pthread_at

    def unlearn(self, index: int) -> None:
        """The index is another file's from now on."""
        self._places.pop(index, None)

    def tick(self, pythons: Sequence[Probed], greenlets: Collection[Probed]) -> Turns[None]:
        """Looks at the processes that map these files. `greenlets`: the probed ones."""
        current = {process.pid: process for each in pythons for process in each.processes}
        for pid in [pid for pid, seen in self._seen.items() if current.get(pid) != seen.process]:
            del self._seen[pid]
        switching = {process.pid for each in greenlets for process in each.processes}
        now = self._clock()
        for each in pythons:
            for process in each.processes:
                seen = self._seen.setdefault(
                    process.pid, _Seen(process, Looks(now, _OFTEN_SECONDS))
                )
                if seen.looks.is_due(now, process.listens):
                    self._look(each, process, process.pid in switching)
                    yield

    def _look(self, python: Probed, process: Process, switches: bool) -> None:
        try:
            entry, flags = None, 0
            words = executed.arguments(process.pid, proc=self._proc)
            runs_threads = servers.are_threads(procfs.executable(self._proc, process.pid), words)
            if process.born and runs_threads and not self._has_tasks(process.pid, switches):
                entry, flags = self._entry(python, process), _WORKERS
                if self._seen[process.pid].looks.is_settled(self._clock()):
                    flags |= _SETTLED
            elif process.born and (jobs := servers.works_at(words)):
                entry = self._entry(python, process)
                entry = entry and replace(entry, jobs=jobs)
            elif process.born and not runs_threads:
                accepting = self._acceptor(python, process, switches)
                if accepting is None:
                    return  # what is known of it stays
                if accepting.id:
                    entry, flags = self._entry(python, process), _WORKERS
                    at, pool = accepting
                    entry = entry and replace(entry, acceptor=at, pool=pool)
            self._tell(process, entry, flags)
        except OSError:
            if (self._proc / str(process.pid)).exists():  # else it has ended
                self._failures["process_unreadable"] += 1
        except MalformedError:
            self._failures["process_unreadable"] += 1

    def _has_tasks(self, pid: int, switches: bool) -> bool:
        """May many requests be served on one thread? `switches`: that is seen of greenlets."""
        unread: Counter[str] = Counter()
        for mapping in mappings.executed(self._proc, pid, unread):
            name = mapping.name.rpartition("/")[2]
            if _LOOP.fullmatch(name) or (_GREENLET.fullmatch(name) and not switches):
                return True
        return bool(unread)

    def _acceptor(self, python: Probed, process: Process, switches: bool) -> Acceptor | None:
        """The thread that accepts for a server of threads; its id is its thread pointer.

        None where that cannot be told at this moment. Raises OSError where the process has ended.
        """
        known = self._places.get(python.sites[0].cookie)
        base = self._base(python, process) if known else None
        if known is None or base is None:
            return acceptor.NONE
        places, pthread_at = known
        told = self._runtimes.find(process.pid)
        nothing = 0
        with Memory(process.pid, proc=self._proc) as memory:
            for _ in range(_TRIES):
                try:
                    thread = acceptor.find(Stacks(memory, places, base))
                except OSError:
                    continue
                if thread.id:
                    if self._has_tasks(process.pid, switches):
                        return acceptor.NONE
                    return thread._replace(id=thread.id + pthread_at)
                # of a thread that is at work, not all may have been seen
                nothing += 1
                if nothing == _MOST_TRIES or not (told and told.acceptor):
                    return acceptor.NONE
        self._failures["stack_unreadable"] += 1
        return None

    def _base(self, python: Probed, process: Process) -> int | None:
        """What is added to addresses as linked. None: the code is not where the file is."""
        elf = arch.open_elf(python.file)
        linked = elf.mapped_address(process.offset) if elf else None
        return None if linked is None else process.start - linked

    def _entry(self, python: Probed, process: Process) -> Entry | None:
        """What the programs have to know of a process. None: its code is not where the file is."""
        base = self._base(python, process)
        if base is None:
            return None
        word = executed.find(process.pid, proc=self._proc)
        index = python.sites[0].cookie
        return Entry(_KIND, index, base, process.born, word.address, word.value)

    def _tell(self, process: Process, entry: Entry | None, flags: int) -> None:
        """The programs note in the entry what they see: it is written where it has to change."""
        known = self._runtimes.find(process.pid)
        if known and (known.kind, known.born) != (_KIND, process.born):
            known = None
        if entry is None:
            if known and (known.flags & _WORKERS or known.jobs):
                seen = known.flags & ~(_WORKERS | _SETTLED)
                left = replace(known, flags=seen, jobs=0, acceptor=0)
                # a server that begins later has accepted nothing yet
                left = replace(left, port=0, since_ns=0, others=NOWHERE)
                self._runtimes.tell(process.pid, left)
            return
        if known and (not known.check_at or known.check == entry.check):
            flags |= known.flags if flags else known.flags & ~(_WORKERS | _SETTLED)
            if entry.acceptor:
                # what it forks may do anything
                flags &= ~_SETTLED
            if entry.acceptor == known.acceptor:
                entry = replace(
                    entry, port=known.port, since_ns=known.since_ns, others=known.others
                )
        entry = replace(entry, flags=flags)
        if known != entry:
            self._runtimes.tell(process.pid, entry)
