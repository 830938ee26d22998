"""The provider for Java: tells the programs where each JVM keeps its current thread.

Nothing is probed. Each process that maps a libjvm.so is looked into once, and gets an entry in
tl_runtimes. What is read there is the process's own word, and is used for this process alone:
processes share an entry of tl_java_bins only where they say the same.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from throughline.bpf import abi, libbpf, maps
from throughline.bpf.runtimes import KINDS, Entry, Runtimes
from throughline.elf.elf import Elf, MalformedError
from throughline.host.memory import Memory
from throughline.probes import arch
from throughline.probes.provider import Answer, Found, Probed, Process
from throughline.probes.site import Site
from throughline.runtimes.java import layout, vmstructs
from throughline.runtimes.java.layout import Layout
from throughline.runtimes.java.vmstructs import NotYetError, UnsupportedError
from throughline.steps import Turns

log = logging.getLogger(__name__)

_START_SECONDS = 60.0  # in which a JVM may come up
_MAX_NAMES = 256  # threads of a process whose names are read
_WORD_BYTES = 8
_FILE = "java"  # the object's group, see features/providers.py


@dataclass(slots=True)
class _Known:
    """A process that was looked at."""

    process: Process
    until: float  # it may come up, by the monotonic clock
    is_done: bool = False
    index: int = 0  # of tl_java_bins, 0: none


class JavaProvider:
    """The JVMs among traced processes. Not for several threads."""

    name = "java"

    def __init__(
        self,
        loaded: libbpf.Object,
        *,
        proc: Path = Path("/proc"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bins = loaded.map_fd("tl_java_bins")
        self._runtimes = Runtimes(loaded.map_fd("tl_runtimes"))
        self._proc = proc
        self._clock = clock
        # What an earlier run has written stays: its indices keep their meaning.
        self._indices = _Indices(self._bins)
        self._known: dict[int, _Known] = {}  # by process id
        self._releases: dict[int, str] = {}  # by index
        self.failures: Counter[str] = Counter()

    @classmethod
    def make(cls, loaded: Mapping[str, libbpf.Object], _without: Collection[str]) -> JavaProvider:
        """For the table of providers."""
        return cls(loaded[_FILE])

    def find(self, file: int) -> Found | Answer:
        """Is it a libjvm.so of HotSpot? Raises OSError and MalformedError."""
        elf = arch.open_elf(file)
        return Found() if elf and vmstructs.exports(elf) else Answer.NOT_MINE

    def tick(self, probed: Sequence[Probed]) -> Turns[None]:
        """Looks into JVMs that have come, and forgets those that have gone."""
        current = {process.pid: process for each in probed for process in each.processes}
        for pid, known in list(self._known.items()):
            if current.get(pid) != known.process:
                del self._known[pid]
                self._runtimes.forget_own(pid, known.process.born, KINDS["java"])
        for each in probed:
            elf: Elf | None = None
            for process in each.processes:
                known = self._known.setdefault(
                    process.pid, _Known(process, self._clock() + _START_SECONDS)
                )
                if not process.born or (known.is_done and not self._is_gone(known)):
                    continue
                elf = elf or arch.open_elf(each.file)
                self._look(elf, known)
                yield

    def describe(self, found: Probed) -> Mapping[str, str]:
        """The release of Java, or why its processes are not understood."""
        indices = [
            self._known[process.pid].index
            for process in found.processes
            if process.pid in self._known
        ]
        releases = {self._releases[index] for index in indices if index}
        return {"version": ", ".join(sorted(releases))} if releases else {}

    def leaving(self, _sites: Sequence[Site]) -> None:
        """It has no sites."""

    def close(self) -> None:
        """Entries stay: pinned programs go on without the agent."""

    def _is_gone(self, known: _Known) -> bool:
        """The map is LRU: the entry of a process that has long been idle may have given way."""
        return bool(known.index) and self._runtimes.find(known.process.pid) is None

    def _look(self, elf: Elf | None, known: _Known) -> None:
        """Looks into a process, once or until its JVM is up."""
        pid = known.process.pid
        known.is_done = True
        try:
            exports = vmstructs.exports(elf) if elf else None
            linked = elf.mapped_address(known.process.offset) if elf else None
            if elf is None or exports is None or linked is None:
                raise UnsupportedError("its code is not where the file has it")
            base = known.process.start - linked
            with Memory(pid, proc=self._proc) as memory:
                found = layout.find(memory, base, exports, self._names(pid))
                check = memory.word(base + exports.table)
            self._tell(known, found, base, base + exports.table, check)
        except NotYetError as error:
            known.is_done = self._clock() >= known.until
            if known.is_done:
                self._fail("unsupported", error, pid)
        except (UnsupportedError, MalformedError) as error:
            self._fail("unsupported", error, pid)
        except OSError as error:
            # it may have ended, or be in the middle of its start
            known.is_done = self._clock() >= known.until
            if known.is_done and (self._proc / str(pid)).exists():
                self._fail("unreadable", error, pid)
        except Exception as error:  # the memory belongs to a traced process: it must not end us
            self._fail("failed", error, pid)

    def _tell(self, known: _Known, found: Layout, base: int, check_at: int, check: int) -> None:
        used = {other.index for other in self._known.values()}
        index = known.index = self._indices.take(found.pack(), used)
        if not index:
            self.failures["too_many_builds"] += 1
            return
        self._releases[index] = found.release
        self._runtimes.tell(
            known.process.pid,
            Entry(abi.RuntimeKind.RUNTIME_JAVA, index, base, known.process.born, check_at, check),
        )
        log.info("process %d is Java %s", known.process.pid, found.release)

    def _fail(self, reason: str, error: Exception, pid: int) -> None:
        self.failures[reason] += 1
        if self.failures[reason] == 1:
            log.warning(
                "%s: the Java of process %d: %s", reason, pid, error, exc_info=reason == "failed"
            )

    def _names(self, pid: int) -> dict[int, str]:
        """The kernel's names of a process's threads, by id as the process sees it."""
        names: dict[int, str] = {}
        tasks = sorted((self._proc / str(pid) / "task").iterdir(), key=lambda task: int(task.name))
        for task in tasks[:_MAX_NAMES]:
            with suppress(OSError, ValueError, KeyError):  # the thread has ended
                status = (task / "status").read_text(errors="replace")
                lines = dict(line.partition(":")[::2] for line in status.splitlines())
                names[int(lines["NSpid"].split()[-1])] = lines["Name"].strip()
        return names


class _Indices:
    """Indices of tl_java_bins: each layout has one. 0 is no index."""

    def __init__(self, bins: int) -> None:
        self._bins = bins
        self._taken: dict[bytes, int] = {}
        empty = bytes(abi.JAVA_BINARY.size)
        for index in range(1, abi.Java.BINARIES):
            packed = maps.lookup(bins, maps.U32.pack(index), abi.JAVA_BINARY.size)
            if packed and packed != empty:
                self._taken[packed] = index

    def take(self, packed: bytes, used: Collection[int]) -> int:
        """The index of a layout; 0 where processes use all of them."""
        index = self._taken.get(packed, 0)
        if index:
            return index
        free = set(range(1, abi.Java.BINARIES)) - set(self._taken.values())
        if not free:
            unused = {other: at for other, at in self._taken.items() if at not in used}
            if not unused:
                return 0
            layout_of, index = next(iter(unused.items()))
            del self._taken[layout_of]
            free = {index}
        index = min(free)
        maps.update(self._bins, maps.U32.pack(index), packed)
        self._taken[packed] = index
        return index
