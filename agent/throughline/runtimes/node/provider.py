"""The provider for Node.js: which processes run it, and which have the preload.

A process with the preload tells the programs itself where it shows the request that it serves, when
it accepts its first connection (bpf/runtimes/node.h). Nothing is read in its memory here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from throughline.bpf import libbpf
from throughline.host import executed
from throughline.host.memory import Memory
from throughline.probes import arch
from throughline.probes.provider import Answer, Found, Probed, Process
from throughline.probes.site import Site
from throughline.steps import Turns

_START = "_ZN4node5StartEiPPc"  # node::Start(int, char**), which embedders may call
_MAX_BYTES = 256 << 10
_ENVIRONMENT = slice(47, 49)  # env_start and env_end behind the name, in /proc/PID/stat
# Under the name that it has as a credential of a unit, or in a release.
_OPTION = re.compile(rb"(?:^|\0)NODE_OPTIONS=[^\0]*(?:/throughline-|/share/node/)context\.cjs")


class NodeProvider:
    """The programs and libraries with Node.js among those of traced processes."""

    name = "node"

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self.failures: Counter[str] = Counter()
        self._proc = proc
        # by process id, and when it began; None: it could not be read, and is looked at again
        self._preloaded: dict[tuple[int, int], bool | None] = {}

    @classmethod
    def make(cls, _loaded: Mapping[str, libbpf.Object], _without: Collection[str]) -> NodeProvider:
        """For the table of providers."""
        return cls()

    def find(self, file: int) -> Found | Answer:
        """Raises OSError and MalformedError."""
        elf = arch.open_elf(file)
        return Found() if elf and elf.functions(_START, ()) else Answer.NOT_MINE

    def tick(self, probed: Sequence[Probed]) -> Turns[None]:
        """Looks at the environment of processes that have come."""
        current = [process for each in probed for process in each.processes]
        keys = {(process.pid, process.born) for process in current}
        self._preloaded = {key: had for key, had in self._preloaded.items() if key in keys}
        for process in current:
            key = (process.pid, process.born)
            if self._preloaded.get(key) is None:
                found = self._look(process)
                if found is None and key not in self._preloaded:
                    self.failures["process_unreadable"] += 1
                self._preloaded[key] = found
                yield

    def _look(self, process: Process) -> bool | None:
        """/proc/PID/environ is for its owner alone: the environment is read in the memory."""
        try:
            start, end = map(int, executed.stat(process.pid, proc=self._proc)[_ENVIRONMENT])
            with Memory(process.pid, proc=self._proc) as memory:
                environment = memory.read(start, min(max(end - start, 0), _MAX_BYTES))
            return _OPTION.search(environment) is not None
        except (OSError, ValueError):  # it hides its environment, or has ended: then it goes soon
            return None if (self._proc / str(process.pid)).exists() else False

    def describe(self, found: Probed) -> Mapping[str, int]:
        """How many of its processes were started with the preload."""
        keys = [(process.pid, process.born) for process in found.processes]
        return {"preloaded": sum(self._preloaded.get(key) or False for key in keys)}

    def leaving(self, _sites: Sequence[Site]) -> None:
        """It has no sites."""

    def close(self) -> None:
        """Holds nothing."""
