"""The provider for Node.js: which processes and services run it, and which have the preload.

A process with the preload tells the programs itself where it shows the request that it serves, when
it accepts its first connection (bpf/runtimes/node.h). Nothing is read in its memory here.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from throughline.bpf import libbpf
from throughline.host import executed
from throughline.host.memory import Memory
from throughline.probes import arch
from throughline.probes.provider import Answer, Found, Probed, Process
from throughline.probes.site import Site
from throughline.runtimes.node.units import ETC, Place, Units, place_of
from throughline.steps import Turns

_START = "_ZN4node5StartEiPPc"  # node::Start(int, char**), which embedders may call
_MAX_BYTES = 256 << 10
_ENVIRONMENT = slice(47, 49)  # env_start and env_end behind the name, in /proc/PID/stat
_LOOK_SECONDS = 5.0  # between two looks at the files of the units
# Under the name that it has as a credential of a unit, or in a release.
_FILE = rb"(?:/throughline-|/share/node/)context\.cjs"
_OPTION = re.compile(rb"(?:^|\0)NODE_OPTIONS=[^\0]*" + _FILE)
# Where root's preload has left the environment, what it forks gets it as an argument.
_ARGUMENT = re.compile(rb"--require=[^\0]*" + _FILE + rb"\Z")


@dataclass(slots=True)
class _Known:
    """What is known of a process. None: it could not be read, and is looked at again."""

    preloaded: bool | None = None
    place: Place | None = None


class NodeProvider:
    """The programs and libraries with Node.js among those of traced processes."""

    name = "node"

    def __init__(
        self,
        proc: Path = Path("/proc"),
        etc: Path = ETC,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failures: Counter[str] = Counter()
        self._proc = proc
        self._clock = clock
        self._look_at = 0.0
        self._known: dict[tuple[int, int], _Known] = {}  # by process id, and when it began
        self._units = Units(self.failures, etc=etc)

    @classmethod
    def make(cls, _loaded: Mapping[str, libbpf.Object], _without: Collection[str]) -> NodeProvider:
        """For the table of providers."""
        return cls()

    def find(self, file: int) -> Found | Answer:
        """Raises OSError and MalformedError."""
        elf = arch.open_elf(file)
        return Found() if elf and elf.functions(_START, ()) else Answer.NOT_MINE

    def tick(self, probed: Sequence[Probed]) -> Turns[None]:
        """Looks at processes that have come, and sometimes at the files of their units."""
        current = [process for each in probed for process in each.processes]
        keys = {(process.pid, process.born) for process in current}
        self._known = {key: known for key, known in self._known.items() if key in keys}
        for process in current:
            if self._learn(process):
                yield
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + _LOOK_SECONDS
            places = {known.place for known in self._known.values() if known.place}
            yield from self._units.looking(one.unit for one in places if one.is_service)

    def _learn(self, process: Process) -> bool:
        """Returns whether there was something to look at."""
        key = (process.pid, process.born)
        known, is_new = self._known.get(key), False
        if known is None:
            known, is_new = self._known.setdefault(key, _Known()), True
        if known.preloaded is not None and known.place is not None:
            return False
        if known.preloaded is None:
            known.preloaded = self._look(process)
            if is_new and known.preloaded is None:
                self.failures["process_unreadable"] += 1
        if known.place is None:
            known.place = self._place(process)
        if is_new:
            self._look_at = 0.0
        return True

    def _look(self, process: Process) -> bool | None:
        """/proc/PID/environ is for its owner alone: the environment is read in the memory."""
        try:
            start, end = map(int, executed.stat(process.pid, proc=self._proc)[_ENVIRONMENT])
            with Memory(process.pid, proc=self._proc) as memory:
                environment = memory.read(start, min(max(end - start, 0), _MAX_BYTES))
            if _OPTION.search(environment):
                return True
            words = executed.arguments(process.pid, proc=self._proc)
            return any(_ARGUMENT.match(os.fsencode(word)) for word in words[1:])
        except (OSError, ValueError):  # it hides its environment, or has ended: then it goes soon
            return None if (self._proc / str(process.pid)).exists() else False

    def _place(self, process: Process) -> Place | None:
        try:
            return place_of(process.pid, proc=self._proc)
        except OSError:
            return None

    def describe(self, found: Probed) -> Mapping[str, object]:
        """How many of its processes were started with the preload; the same for each unit."""
        numbers = Counter(known.place for known in self._known.values() if known.preloaded)
        mine = [self._known.get((one.pid, one.born), _Known()) for one in found.processes]
        units: dict[str, dict[str, object]] = {}
        for place in sorted({known.place for known in mine if known.place}, key=_name):
            here = [known for known in mine if known.place == place]
            state, reason = self._units.judge(place, preloaded=numbers[place])
            units[place.unit] = {
                "processes": len(here),
                "preloaded": sum(known.preloaded or False for known in here),
                "preload": state.value,
                "reason": reason,
            }
        return {"preloaded": sum(known.preloaded or False for known in mine), "units": units}

    def leaving(self, _sites: Sequence[Site]) -> None:
        """It has no sites."""

    def close(self) -> None:
        """Holds nothing."""


def _name(place: Place) -> str:
    return place.unit
