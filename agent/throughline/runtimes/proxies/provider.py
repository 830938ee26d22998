"""The provider for proxies: HAProxy, Varnish and nginx.

proxies.bpf.o finds what it reads of a file in tl_proxy_bins (binaries.py). Each process of the file
gets an entry in tl_runtimes once its file is probed: from then on only the probes say which request
a call is for.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from throughline.bpf import libbpf, maps
from throughline.bpf.runtimes import KINDS, Entry, Runtimes
from throughline.elf.elf import MalformedError
from throughline.host import executed
from throughline.probes import arch
from throughline.probes.provider import Answer, Found, Probed, Process
from throughline.probes.site import Site
from throughline.runtimes.binaries import KEY_BYTES, Binaries, FullError
from throughline.runtimes.proxies import haproxy, nginx, varnish
from throughline.runtimes.proxies.proxy import Proxy, UnsupportedError
from throughline.steps import Turns

log = logging.getLogger(__name__)

_OTHERS = {"tl_proxy_threads": maps.U32.size, "tl_hap_streams": KEY_BYTES}


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
        self._runtimes = Runtimes(loaded.map_fd("tl_runtimes"))
        self._without = frozenset(without)
        self._proc = proc
        self._known: dict[int, _Known] = {}  # by process id
        for kind in KINDS["proxies"]:
            self._runtimes.clear(kind)
        self._binaries = Binaries[Proxy](
            loaded, table="tl_proxy_bins", agent="tl_proxy_agent", others=_OTHERS
        )

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
        try:
            return self._binaries.add(found, packed=found.packed, sites=found.sites)
        except FullError:
            self.failures["too_many_programs"] += 1
            return Answer.NOT_MINE

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
                self._runtimes.forget_own(pid, known.process.born, KINDS["proxies"])
        for pid, (process, index) in current.items():
            if not self._is_told(pid) and process.born:
                self._known[pid] = _Known(process, index, self._look(process, index))
                yield

    def describe(self, found: Probed) -> Mapping[str, str]:
        """Which proxy it is."""
        return {"version": self._binaries.of(found).name}

    def leaving(self, sites: Sequence[Site]) -> None:
        """From now on nothing is known of its processes' streams."""
        self._binaries.remove(sites)

    def close(self) -> None:
        """The probes are gone."""
        self._binaries.close()

    def _is_told(self, pid: int) -> bool:
        """The map is LRU: the entry of a process that has long been idle may have given way."""
        known = self._known.get(pid)
        return known is not None and known.is_told and self._runtimes.find(pid) is not None

    def _look(self, process: Process, index: int) -> bool:
        """Returns whether the programs have been told of a process."""
        try:
            word = executed.find(process.pid, proc=self._proc)
        except (OSError, MalformedError):
            if (self._proc / str(process.pid)).exists():  # else it has ended
                self.failures["process_unreadable"] += 1
            return False
        entry = Entry(
            self._binaries.at(index).kind, index, 0, process.born, word.address, word.value
        )
        self._runtimes.tell(process.pid, entry)
        return True
