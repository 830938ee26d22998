"""The processes of the traced cgroups: which there are, and when their mappings are read.

The mappings of a new process are read in the next second, after 2, 6, 14 and 30 seconds and then
every 30 seconds, since a process may load a library at any time; and when it begins to serve
(agent/pace.py): by then it has loaded what it needs.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from throughline.probes import mappings, procfs
from throughline.probes.files import Files, State
from throughline.probes.probedfile import Identity
from throughline.probes.provider import Process
from throughline.services.cgroups import GONE
from throughline.steps import Turns, finish

# The time that one `follow` takes for mappings and files: while spans wait, and at the start.
BUDGET_SECONDS, FIRST_BUDGET_SECONDS = 0.02, 2.0
PROCESS_SECONDS = 0.5  # one process may take this long in any case, for many files or slow ones
SECOND_READING, LATER_READINGS = 2.0, 30.0  # seconds: twice as long each time, up to the latter
_EACH_TURN = 32  # processes, about 1 ms

_Key = tuple[bytes, str, bool]  # device, name and deleted of a mapping


@dataclass(slots=True)
class _Process:
    due: float  # when its mappings are read next
    # See procfs; as they were at the first reading.
    identity: tuple[str, int] | None = None
    inode: tuple[int, int] = (0, 0)
    readings: int = 0
    listens: int = 0  # see Process
    mapped: dict[_Key, Identity | State] = field(default_factory=dict)
    probed: dict[Identity, Process] = field(default_factory=dict)  # the mapped files of providers


class Processes:
    """Leads from cgroups by processes and their mappings to the files that are probed."""

    def __init__(
        self,
        files: Files,
        *,
        proc: Path = Path("/proc"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = files
        self._proc = proc
        self._clock = clock
        self._budget = FIRST_BUDGET_SECONDS
        self._processes: dict[int, _Process] = {}

    def follow(self, cgroup_paths: Iterable[str]) -> None:
        """To be called each second, with the directories of the cgroups that are traced now."""
        finish(self.following(cgroup_paths))

    def following(self, cgroup_paths: Iterable[str]) -> Turns[None]:
        """The same in turns.

        Processes that do not fit into the budget are read by the next calls, those that have waited
        longest first. The first call has a larger budget: when the agent says that it is ready,
        services are traced.
        """
        yield from self._find(cgroup_paths, self._clock())
        now = self._clock()
        budget, self._budget = self._budget, BUDGET_SECONDS
        due = sorted((p.due, pid) for pid, p in self._processes.items() if p.due <= now)
        for count, (_, pid) in enumerate(due):
            if count and self._clock() - now > budget:
                break
            yield from self._read(pid, now, self._clock() + max(budget, PROCESS_SECONDS))
        yield
        changed = self._files.tend(self._used(), now)
        if changed:
            self._read_again(changed, now)

    def look_again(self, pids: Iterable[int]) -> None:
        """They have begun to serve: the next call of `following` reads their mappings."""
        for pid in pids:
            if process := self._processes.get(pid):
                process.due = self._clock()
                process.listens += 1

    def _find(self, cgroup_paths: Iterable[str], now: float) -> Turns[None]:
        current = yield from procfs.pids(cgroup_paths, self._files.failures)
        for pid in self._processes.keys() - current:
            del self._processes[pid]
        for count, pid in enumerate(current, 1):
            known = self._processes.get(pid)
            if known is None or not self._is_same(pid, known):
                self._processes[pid] = _Process(now)
            if count % _EACH_TURN == 0:
                yield

    def _is_same(self, pid: int, known: _Process) -> bool:
        """Is it the process that was read, and does it still execute the same program?"""
        if known.identity is None:
            return True
        inode = procfs.inode(self._proc, pid)
        if inode == known.inode:
            return procfs.executable(self._proc, pid) == known.identity[0]
        known.inode = inode
        return procfs.identity(self._proc, pid) == known.identity

    def _read(self, pid: int, now: float, until: float) -> Turns[None]:
        """Looks at the files that a process maps: at one new file, and at others until `until`."""
        process = self._processes[pid]
        process.due = now + min(LATER_READINGS, SECOND_READING * 2 ** min(process.readings, 8))
        process.readings += 1
        if process.identity is None:
            process.inode = procfs.inode(self._proc, pid)
            process.identity = procfs.identity(self._proc, pid)
        mapped: dict[_Key, Identity | State] = {}
        probed: dict[Identity, Process] = {}
        looked = later = False
        try:
            for mapping in mappings.executed(self._proc, pid, self._files.failures):
                key = (mapping.device, mapping.name, mapping.deleted)
                if key in process.mapped:
                    found = mapped[key] = process.mapped[key]
                    if not isinstance(found, State):
                        probed.setdefault(found, _maps(pid, process, mapping))
                    continue
                if looked and self._clock() > until:
                    later = True
                    continue
                looked = True
                found = self._files.look(pid, mapping, now)
                if found is State.LATER:
                    later = True
                else:
                    mapped[key] = found
                    if not isinstance(found, State):
                        probed.setdefault(found, _maps(pid, process, mapping))
                yield
        except OSError as error:
            if error.errno not in GONE:
                self._files.fail("maps_unreadable", error, f"process {pid}")
            return
        process.mapped = mapped
        process.probed = probed
        if later:
            process.due = now
            process.readings -= 1

    def _used(self) -> dict[Identity, list[Process]]:
        """The processes that map each file of a provider."""
        used: defaultdict[Identity, list[Process]] = defaultdict(list)
        for process in self._processes.values():
            for identity, mapped in process.probed.items():
                used[identity].append(mapped)
        return used

    def _read_again(self, changed: set[Identity], now: float) -> None:
        """The processes that map these files are read anew in the next second."""
        for process in self._processes.values():
            if not changed.isdisjoint(process.probed):
                process.mapped, process.probed, process.due = {}, {}, now


def _maps(pid: int, process: _Process, mapping: mappings.Mapping) -> Process:
    born = process.identity[1] if process.identity else 0
    return Process(pid, born, mapping.start, mapping.offset, process.listens)
