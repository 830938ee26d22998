"""The provider for CPython: where contexts are copied and freed, and greenlets made and run.

python.bpf.o finds the layout of an interpreter in tl_python_bins, by the index in the cookies of
its probes. An index is never given twice in a run: what the programs know of contexts holds only
while the same probes are there.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from throughline.bpf import abi, libbpf, maps
from throughline.bpf.runtimes import Runtimes
from throughline.probes.provider import Answer, Found, Probed
from throughline.probes.site import Site
from throughline.runtimes.python import greenlets, interpreter
from throughline.runtimes.python.workers import Workers
from throughline.steps import Turns

log = logging.getLogger(__name__)

_GREENLET = "greenlet"  # instead of a version
_PID_BYTES = _INDEX_BYTES = 4
_KEY_BYTES = 8  # tl_process_key() in bpf/core/process.h
_GREENLETS = {"tl_py_spawned", "tl_py_switched"}  # the programs for greenlets
_MAX_INDEX = (1 << 16) - 1  # tl_runtime.binary


class PythonProvider:
    """The files with CPython, and with greenlet, among those of traced processes."""

    name = "python"

    def __init__(
        self,
        loaded: libbpf.Object,
        *,
        without: Collection[str] = (),
        proc: Path = Path("/proc"),
    ) -> None:
        """`without`: programs that this kernel refuses."""
        self.failures: Counter[str] = Counter()
        self._binaries = loaded.map_fd("tl_python_bins")
        self._agent = loaded.map_fd("tl_py_agent")
        self._without = frozenset(without)
        self._versions: dict[int, str] = {}  # by index
        self._indices = itertools.count(1)
        runtimes = Runtimes(loaded.map_fd("tl_runtimes"))
        self._workers = Workers(runtimes, self.failures, proc)
        _forget(loaded, runtimes)
        self._tell(os.getpid())

    @classmethod
    def make(cls, loaded: Mapping[str, libbpf.Object], without: Collection[str]) -> PythonProvider:
        """For the table of providers."""
        return cls(loaded["python"], without=without)

    def find(self, file: int) -> Found | Answer:
        """Raises OSError and MalformedError."""
        try:
            found = interpreter.find(file)
        except interpreter.UnsupportedError as error:
            self.failures["unsupported"] += 1
            log.warning("the tasks of a Python program are not followed: %s", error)
            return Answer.NOT_MINE
        if found is not None:
            return self._found(found.sites, found.packed, found.version)
        sites = () if self._without & _GREENLETS else greenlets.find(file)
        return self._found(sites, greenlets.PACKED, _GREENLET) if sites else Answer.NOT_MINE

    def _found(self, sites: Sequence[Site], packed: bytes, version: str) -> Found | Answer:
        index = next(self._indices)
        try:
            if index > _MAX_INDEX:
                raise OverflowError
            maps.update(self._binaries, index.to_bytes(_INDEX_BYTES, "little"), packed)
        except (OSError, OverflowError):
            self.failures["too_many_programs"] += 1
            return Answer.NOT_MINE
        self._versions[index] = version
        return Found(tuple(replace(site, cookie=index) for site in sites))

    def tick(self, probed: Sequence[Probed]) -> Turns[None]:
        """Tells the programs which processes run a server of threads."""
        pythons: list[Probed] = []
        switching: list[Probed] = []
        for file in probed:
            if file.sites and not file.refused:
                of = switching if self._versions[file.sites[0].cookie] == _GREENLET else pythons
                of.append(file)
        yield from self._workers.tick(pythons, switching)

    def describe(self, found: Probed) -> Mapping[str, str]:
        """The version of Python."""
        return {"version": self._versions[found.sites[0].cookie]}

    def leaving(self, sites: Sequence[Site]) -> None:
        """From now on nothing is known of the contexts of its processes."""
        index = sites[0].cookie
        maps.delete(self._binaries, index.to_bytes(_INDEX_BYTES, "little"))
        self._versions.pop(index, None)

    def close(self) -> None:
        """The probes are gone."""
        self._tell(0)

    def _tell(self, pid: int) -> None:
        maps.update(self._agent, bytes(_INDEX_BYTES), pid.to_bytes(_PID_BYTES, "little"))


def _forget(loaded: libbpf.Object, runtimes: Runtimes) -> None:
    """Removes what an earlier run has found: contexts have come and gone unseen since.

    Which processes run a server of threads stays known, under no index.
    """
    for name, size in (("tl_python_bins", _INDEX_BYTES), ("tl_py_contexts", _KEY_BYTES)):
        table = loaded.map_fd(name)
        for key in list(maps.keys(table, size)):
            maps.delete(table, key)
    for pid, entry in runtimes.of_kind(abi.RuntimeKind.RUNTIME_PYTHON):
        if entry.flags & abi.RuntimeFlags.RUNTIME_WORKERS:
            runtimes.tell(pid, replace(entry, binary=0))
        else:
            runtimes.forget(pid)
