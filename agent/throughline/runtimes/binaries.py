"""The table of the files that a provider has probed, for the programs of its probes.

They find what they read of a file by the index in the cookies of its probes. An index is never
given twice in a run: what the programs know of tasks holds only while the same probes are there.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from throughline.bpf import libbpf, maps
from throughline.probes.provider import Found, Probed
from throughline.probes.site import Site

_MAX_INDEX = (1 << 16) - 1  # tl_runtime.binary
KEY_BYTES = 8  # tl_process_key() in bpf/core/process.h

Known = TypeVar("Known")


class FullError(Exception):
    """The table has no place for another file."""


class Binaries(Generic[Known]):
    """The probed files, and what the agent itself knows of each."""

    def __init__(
        self, loaded: libbpf.Object, *, table: str, agent: str, others: Mapping[str, int]
    ) -> None:
        """Begins anew: what an earlier run has found was not watched since.

        `agent`: the map that tells the programs whose probes these are. `others`: maps that are
        emptied, too, with the sizes of their keys.
        """
        self._table = loaded.map_fd(table)
        self._agent = loaded.map_fd(agent)
        self._known: dict[int, Known] = {}  # by index
        self._indices = itertools.count(1)
        for name, size in {table: maps.U32.size, **others}.items():
            emptied = loaded.map_fd(name)
            for key in list(maps.keys(emptied, size)):
                maps.delete(emptied, key)
        self._tell(os.getpid())

    def add(self, known: Known, *, packed: bytes, sites: Sequence[Site]) -> Found:
        """A file: `packed` is what the programs read of it. Raises FullError."""
        index = next(self._indices)
        try:
            if index > _MAX_INDEX:
                raise OverflowError
            maps.update(self._table, maps.U32.pack(index), packed)
        except (OSError, OverflowError) as error:
            raise FullError from error
        self._known[index] = known
        return Found(tuple(replace(site, cookie=index) for site in sites))

    def tell(self, index: int, packed: bytes) -> None:
        """From now on the programs read this of a file."""
        maps.update(self._table, maps.U32.pack(index), packed)

    def of(self, probed: Probed) -> Known:
        """What is known of a file that is probed."""
        return self._known[probed.sites[0].cookie]

    def at(self, index: int) -> Known:
        """The same by its index."""
        return self._known[index]

    def remove(self, sites: Sequence[Site]) -> None:
        """The probes of a file are about to go: from now on nothing is known of its processes."""
        index = sites[0].cookie
        maps.delete(self._table, maps.U32.pack(index))
        self._known.pop(index, None)

    def close(self) -> None:
        """All probes are gone."""
        self._tell(0)

    def _tell(self, pid: int) -> None:
        maps.update(self._agent, maps.U32.pack(0), maps.U32.pack(pid))
