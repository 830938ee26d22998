"""The counters of the BPF programs: the per-CPU array map `tl_counters`."""

from __future__ import annotations

from throughline.bpf import abi, maps

COUNTERS = tuple(
    counter.name.lower() for counter in abi.Counter if counter is not abi.Counter.COUNTERS
)


def read_counters(table: int) -> dict[str, int]:
    """Totals of all CPUs by name; docs/reference/counters.md explains the names."""
    size = maps.U64.size * maps.possible_cpus()
    totals = {}
    for index, name in enumerate(COUNTERS):
        values = maps.lookup(table, maps.U32.pack(index), size) or b""
        totals[name] = sum(value for (value,) in maps.U64.iter_unpack(values))
    return totals
