"""The cgroups whose requests are traced: the map `tl_cgroups`."""

from __future__ import annotations

import errno
from collections.abc import Mapping

from throughline.bpf import maps


class TracedCgroups:
    """Keeps the map equal to the wanted state, and writes only the differences."""

    def __init__(self, table: int) -> None:
        self._table = table
        # None is a value that an earlier run has written.
        self._written: dict[int, int | None] = {
            maps.U64.unpack(key)[0]: None for key in maps.keys(table, maps.U64.size)
        }

    def tell(self, wanted: Mapping[int, int]) -> int:
        """Makes the map equal to `wanted`: enum tl_cgroup_flags by cgroup.

        Returns the number of cgroups for which the map is too full.

        The next call writes those cgroups when others have gone. Until then the programs treat them
        as cgroups that are not listed.
        """
        full = 0
        for cgroup_id, flags in wanted.items():
            if self._written.get(cgroup_id) != flags:
                try:
                    maps.update(self._table, maps.U64.pack(cgroup_id), bytes([flags]))
                except OSError as error:
                    if error.errno != errno.E2BIG:
                        raise
                    full += 1
                    continue
                self._written[cgroup_id] = flags
        for cgroup_id in self._written.keys() - wanted.keys():
            maps.delete(self._table, maps.U64.pack(cgroup_id))
            del self._written[cgroup_id]
        return full
