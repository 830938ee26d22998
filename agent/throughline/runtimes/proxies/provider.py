"""The provider for proxies: HAProxy, Varnish and nginx.

proxies.bpf.o finds what it reads of a file in tl_proxy_bins, by the index in the cookies of its
probes. An index is never given twice in a run: what the programs know of streams holds only while
the same probes are there. Each process of the file gets an entry in tl_runtimes once its file is
probed: from then on only the probes say which request a call is for.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from throughline.bpf import libbpf, maps
from throughline.bpf.runtimes import KINDS, Entry, Runtimes
from throughline.elf.elf import MalformedError
from throughline.host import executed
from throughline.probes import arch
from throughline.probes.provider import Answer, Found, Probed, Process
from throughline.probes.site import Site
from throughline.runtimes.proxies import haproxy, nginx, varnish
from throughline.runtimes.proxies.proxy import Proxy, UnsupportedError
from throughline.steps import Turns

log = logging.getLogger(__name__)

_MAX_INDEX = (1 << 16) - 1  # tl_runtime.binary
_KEY_BYTES = 8  # tl_process_key() in bpf/core/process.h


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a process."""

    process: Process
    index: int
    is_told: bool


class ProxyProvider:
    """The files with a proxy among those of traced processes."""

    name = "proxies"

    def __init__(
        self,
        loaded: libbpf.Object,
        *,
        without: Collection[str] = (),
        proc: Path = Path("/proc"),
    ) -> None:
        """`without`: programs that this kernel refuses."""
        self.failures: Counter[str] = Counter()
        self._binaries = loaded.map_fd("tl_proxy_bins")
        self._agent = loaded.map_fd("tl_proxy_agent")
        self._runtimes = Runtimes(loaded.map_fd("tl_runtimes"))
        self._without = frozenset(without)
        self._proc = proc
        self._found: dict[int, Proxy] = {}  # by index
        self._known: dict[int, _Known] = {}  # by process id
        self._indices = itertools.count(1)
        _forget(loaded, self._runtimes)
        self._tell(os.getpid())

    @classmethod
    def make(cls, loaded: Mapping[str, libbpf.Object], without: Collection[str]) -> ProxyProvider:
        """For the table of providers."""
        return cls(loaded["proxies"], without=without)

    def find(self, file: int) -> Found | Answer:
        """Raises OSError and MalformedError."""
        elf = arch.open_elf(file)
        try:
            found = (haproxy.find(elf) or nginx.find(elf) or varnish.find(elf)) if elf else None
        except UnsupportedError as error:
            self.failures["unsupported"] += 1
            log.warning("a proxy is not followed: %s", error)
            return Answer.NOT_MINE
        if found is None or not self._without.isdisjoint(site.program for site in found.sites):
            return Answer.NOT_MINE
        index = next(self._indices)
        try:
            if index > _MAX_INDEX:
                raise OverflowError
            maps.update(self._binaries, maps.U32.pack(index), found.packed)
        except (OSError, OverflowError):
            self.failures["too_many_programs"] += 1
            return Answer.NOT_MINE
        self._found[index] = found
        return Found(tuple(replace(site, cookie=index) for site in found.sites))

    def tick(self, probed: Sequence[Probed]) -> Turns[None]:
        """Tells the programs of processes that have come."""
        current = {
            process.pid: (process, each.sites[0].cookie)
            for each in probed
            if each.sites and not each.refused
            for process in each.processes
        }
        for pid, known in list(self._known.items()):
            if current.get(pid) != (known.process, known.index):
                del self._known[pid]
                self._runtimes.forget(pid)
        for pid, (process, index) in current.items():
            if (pid not in self._known or not self._known[pid].is_told) and process.born:
                self._known[pid] = _Known(process, index, self._look(process, index))
                yield

    def describe(self, found: Probed) -> Mapping[str, str]:
        """Which proxy it is."""
        return {"version": self._found[found.sites[0].cookie].name}

    def leaving(self, sites: Sequence[Site]) -> None:
        """From now on nothing is known of its processes' streams."""
        index = sites[0].cookie
        maps.delete(self._binaries, maps.U32.pack(index))
        self._found.pop(index, None)

    def close(self) -> None:
        """The probes are gone."""
        self._tell(0)

    def _look(self, process: Process, index: int) -> bool:
        """Returns whether the programs have been told of a process."""
        try:
            word = executed.find(process.pid, proc=self._proc)
        except (OSError, MalformedError):
            if (self._proc / str(process.pid)).exists():  # else it has ended
                self.failures["process_unreadable"] += 1
            return False
        entry = Entry(self._found[index].kind, index, 0, process.born, word.address, word.value)
        self._runtimes.tell(process.pid, entry)
        return True

    def _tell(self, pid: int) -> None:
        maps.update(self._agent, maps.U32.pack(0), maps.U32.pack(pid))


def _forget(loaded: libbpf.Object, runtimes: Runtimes) -> None:
    """Removes what an earlier run has found: streams have come and gone unseen since."""
    tables = (
        ("tl_proxy_bins", maps.U32.size),
        ("tl_proxy_threads", maps.U32.size),
        ("tl_hap_streams", _KEY_BYTES),
    )
    for name, size in tables:
        table = loaded.map_fd(name)
        for key in list(maps.keys(table, size)):
            maps.delete(table, key)
    for kind in KINDS["proxies"]:
        runtimes.clear(kind)
