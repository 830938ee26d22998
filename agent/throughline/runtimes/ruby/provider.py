"""The provider for Ruby: tells the programs which processes run Puma or Unicorn.

Nothing is probed. bpf/runtimes/ruby.h follows Puma's threads, and reads in the memory of Ruby which
connection a thread works for. A process of Unicorn has one thread that serves requests
(bpf/evidence/trust.h).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from throughline.bpf import abi, libbpf
from throughline.bpf.runtimes import Entry, Runtimes
from throughline.elf.elf import MalformedError
from throughline.host import executed
from throughline.host.executed import Word
from throughline.host.memory import Memory
from throughline.probes import arch, procfs
from throughline.probes.provider import Answer, Found, Probed, Process
from throughline.probes.site import Site
from throughline.runtimes.looks import Looks
from throughline.runtimes.ruby import context, servers
from throughline.runtimes.ruby.context import Context
from throughline.runtimes.ruby.servers import Server
from throughline.steps import Turns

_KIND = abi.RuntimeKind.RUNTIME_RUBY
_SETTLED = abi.RuntimeFlags.RUNTIME_SETTLED
_FLAGS: Mapping[Server, int] = {
    Server.PUMA: abi.RuntimeFlags.RUNTIME_TAKES,
    Server.UNICORN: abi.RuntimeFlags.RUNTIME_WORKERS | abi.RuntimeFlags.RUNTIME_READABLE,
}


@dataclass(slots=True)
class _Seen:
    """A process that was looked at."""

    process: Process
    looks: Looks
    file: int  # the descriptor of the file with Ruby, in this tick
    word: Word | None = None  # while that is the same, so is `context`
    context: Context | None = None


class RubyProvider:
    """The processes of Ruby among traced ones. Not for several threads."""

    name = "ruby"

    def __init__(
        self,
        runtimes: Runtimes,
        *,
        proc: Path = Path("/proc"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failures: Counter[str] = Counter()
        self._runtimes = runtimes
        self._proc = proc
        self._clock = clock
        self._seen: dict[int, _Seen] = {}  # by process id

    @classmethod
    def make(cls, loaded: Mapping[str, libbpf.Object], _without: Collection[str]) -> RubyProvider:
        """For the table of providers."""
        return cls(Runtimes(loaded["ruby"].map_fd("tl_runtimes")))

    def find(self, file: int) -> Found | Answer:
        """Is it Ruby, as a library or a program? Raises OSError and MalformedError."""
        elf = arch.open_elf(file)
        found = elf.variables((context.VERSION, "ruby_api_version")) if elf else {}
        return Found() if len(found) == 2 else Answer.NOT_MINE

    def tick(self, probed: Sequence[Probed]) -> Turns[None]:
        """Looks at the processes that have come, and again at those that are there."""
        current = {process.pid: (process, each) for each in probed for process in each.processes}
        for pid, seen in list(self._seen.items()):
            if pid not in current or current[pid][0] != seen.process:
                del self._seen[pid]
        now = self._clock()
        for pid, (process, each) in current.items():
            seen = self._seen.setdefault(pid, _Seen(process, Looks(now), each.file))
            seen.file = each.file
            if process.born and seen.looks.is_due(now, process.listens):
                self._look(seen)
                yield

    def describe(self, found: Probed) -> Mapping[str, str]:
        """The version of Ruby."""
        try:
            elf = arch.open_elf(found.file)
            version = context.version(elf) if elf else ""
        except MalformedError:
            version = ""
        return {"version": version} if version else {}

    def leaving(self, _sites: Sequence[Site]) -> None:
        """It has no sites."""

    def close(self) -> None:
        """Entries stay: pinned programs go on without the agent."""

    def _look(self, seen: _Seen) -> None:
        pid, born = seen.process.pid, seen.process.born
        try:
            words = executed.arguments(pid, proc=self._proc)
            runs = servers.server(procfs.executable(self._proc, pid), words)
            entry = None
            if runs is not None:
                flags = _FLAGS[runs] | (_SETTLED if seen.looks.is_settled(self._clock()) else 0)
                word = executed.find(pid, proc=self._proc)
                if seen.word != word:
                    seen.word = word
                    seen.context = self._context(seen) if runs is Server.PUMA else None
                place, version = 0, 0
                if seen.context is not None:
                    place, version = seen.context.place, seen.context.version
                entry = Entry(_KIND, version, place, born, word.address, word.value, flags)
        except OSError:
            if (self._proc / str(pid)).exists():  # else it has ended
                self.failures["process_unreadable"] += 1
            return
        self._tell(pid, born, entry)

    def _context(self, seen: _Seen) -> Context | None:
        """Where its threads keep what they execute. None: that is not known."""
        try:
            elf = arch.open_elf(seen.file)
            linked = elf.mapped_address(seen.process.offset) if elf else None
            if elf is None or linked is None:
                return None
            with Memory(seen.process.pid, proc=self._proc) as memory:
                return context.find(elf, memory, seen.process.start - linked)
        except (OSError, MalformedError):
            self.failures["context_unreadable"] += 1
            return None

    def _tell(self, pid: int, born: int, entry: Entry | None) -> None:
        """A forked process has the entry of its parent before the agent has seen it."""
        known = self._runtimes.find(pid)
        is_own = known is not None and (known.kind, known.born) == (_KIND, born)
        if entry is None:
            if is_own:
                self._runtimes.forget(pid)
            return
        if is_own and known is not None and replace(known, flags=0) == replace(entry, flags=0):
            entry = replace(entry, flags=entry.flags | (known.flags & _SETTLED))
        if known != entry:
            self._runtimes.tell(pid, entry)
