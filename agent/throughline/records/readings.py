"""What the kernel has counted, read from its maps; and what it is told of cgroups."""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping

from throughline.bpf import abi, maps
from throughline.records import events


def counters(table: int) -> dict[str, int]:
    """Totals of the per-CPU array `tl_counters` by name; names as docs/troubleshooting.md has."""
    size = 8 * maps.possible_cpus()
    totals = {}
    for index, name in enumerate(events.COUNTERS):
        values = maps.lookup(table, struct.pack("<I", index), size) or b""
        totals[name] = sum(value for (value,) in struct.iter_unpack("<Q", values))
    return totals


def durations(table: int) -> maps.Hash:
    """The per-CPU hash `tl_durations`, for series.py."""
    return maps.Hash(table, abi.DURATION_KEY.size, abi.DURATION.size * maps.possible_cpus())


class TracedCgroups:
    """The map `tl_cgroups`: which cgroups are traced. Only differences are written."""

    def __init__(self, table: int) -> None:
        self._table = table
        # None: what an earlier run has told
        self._told: dict[int, bool | None] = {
            struct.unpack("<Q", key)[0]: None for key in maps.keys(table, 8)
        }

    def tell(self, wanted: Mapping[int, bool]) -> int:
        """Makes the map say `wanted`, and nothing else; returns how many found no room in it."""
        full = 0
        for cgroup_id, traced in wanted.items():
            if self._told.get(cgroup_id) != traced:
                try:
                    maps.update(self._table, struct.pack("<Q", cgroup_id), bytes([traced]))
                except OSError as error:
                    if error.errno != errno.E2BIG:
                        raise
                    # told at the next turn, when others have gone; until then as if unlisted
                    full += 1
                    continue
                self._told[cgroup_id] = traced
        for cgroup_id in self._told.keys() - wanted.keys():
            maps.delete(self._table, struct.pack("<Q", cgroup_id))
            del self._told[cgroup_id]
        return full
