"""The provider for CPython: where contexts are copied and freed, and greenlets made and run.

python.bpf.o finds the layout of an interpreter in tl_python_bins (binaries.py).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from throughline.bpf import abi, libbpf
from throughline.bpf.runtimes import Runtimes
from throughline.elf.elf import MalformedError
from throughline.probes import arch
from throughline.probes.provider import Answer, Found, Probed
from throughline.probes.site import Site
from throughline.runtimes.binaries import KEY_BYTES, Binaries, FullError
from throughline.runtimes.python import clibrary, greenlets, interpreter, uvloop
from throughline.runtimes.python.workers import Workers
from throughline.steps import Turns

log = logging.getLogger(__name__)

_GREENLET = "greenlet"  # instead of a version
_UVLOOP = "uvloop"
_QUEUED = "tl_py_queued"
# of extensions the programs read nothing through the table
UNREAD = bytes(abi.PYTHON_BINARY.size)
_GREENLETS = {"tl_py_spawned", "tl_py_switched"}  # the programs for greenlets


class PythonProvider:
    """The files with CPython, greenlet and uvloop among those of traced processes."""

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
        self._without = frozenset(without)
        self._proc = proc
        # by index: where the programs still have to be told about the C library
        self._waiting: dict[int, interpreter.Interpreter] = {}
        runtimes = Runtimes(loaded.map_fd("tl_runtimes"))
        self._workers = Workers(runtimes, self.failures, proc)
        _forget(runtimes)
        self._binaries = Binaries[str](
            loaded,
            table="tl_python_bins",
            agent="tl_py_agent",
            others={"tl_py_contexts": KEY_BYTES},
        )

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
            answer = self._found(found.sites, found.packed, found.version)
            if isinstance(answer, Found):
                index, pthread_at = answer.sites[0].cookie, arch.here().PTHREAD_AT
                if pthread_at is None:
                    self._waiting[index] = found
                elif found.places:
                    self._workers.learn(index, found.places, pthread_at)
            return answer
        sites = () if self._without & _GREENLETS else greenlets.find(file)
        if sites:
            return self._found(sites, UNREAD, _GREENLET)
        sites = () if _QUEUED in self._without else uvloop.find(file)
        return self._found(sites, UNREAD, _UVLOOP) if sites else Answer.NOT_MINE

    def _found(self, sites: Sequence[Site], packed: bytes, version: str) -> Found | Answer:
        try:
            return self._binaries.add(version, packed=packed, sites=sites)
        except FullError:
            self.failures["too_many_programs"] += 1
            return Answer.NOT_MINE

    def tick(self, probed: Sequence[Probed]) -> Turns[None]:
        """Tells the programs which processes run a server of threads, or work at jobs."""
        pythons: list[Probed] = []
        switching: list[Probed] = []
        for file in probed:
            if file.sites and not file.refused:
                version = self._binaries.of(file)
                if version != _UVLOOP:
                    (switching if version == _GREENLET else pythons).append(file)
        for file in pythons:
            if file.processes and file.sites[0].cookie in self._waiting:
                self._learn(file)
        yield from self._workers.tick(pythons, switching)

    def _learn(self, file: Probed) -> None:
        """The C library of one of the file's processes is taken for that of all."""
        index, size = file.sites[0].cookie, None
        for process in file.processes:
            try:
                size = clibrary.pthread_bytes(process.pid, proc=self._proc)
                break
            except (OSError, MalformedError):
                continue
        else:
            return  # none can be read, or all have ended
        found = self._waiting.pop(index)
        if size is None:
            self.failures["unsupported"] += 1
            log.warning("the tasks of Python %s are not followed: its C library", found.version)
        else:
            self._binaries.tell(index, found.beside(size))
            if found.places:
                self._workers.learn(index, found.places, size)

    def describe(self, found: Probed) -> Mapping[str, str]:
        """The version of Python."""
        return {"version": self._binaries.of(found)}

    def leaving(self, sites: Sequence[Site]) -> None:
        """From now on nothing is known of the contexts of its processes."""
        self._waiting.pop(sites[0].cookie, None)
        self._workers.unlearn(sites[0].cookie)
        self._binaries.remove(sites)

    def close(self) -> None:
        """The probes are gone."""
        self._binaries.close()


def _forget(runtimes: Runtimes) -> None:
    """Removes what an earlier run has found: contexts have come and gone unseen since.

    Which processes run a server of threads, or work at jobs, stays known, under no index.
    """
    for pid, entry in runtimes.of_kind(abi.RuntimeKind.RUNTIME_PYTHON):
        if entry.flags & abi.RuntimeFlags.RUNTIME_WORKERS or entry.jobs:
            runtimes.tell(pid, replace(entry, binary=0))
        else:
            runtimes.forget(pid)
