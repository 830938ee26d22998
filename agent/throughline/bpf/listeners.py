"""Processes that have begun to serve: the map `tl_listeners`."""

from __future__ import annotations

from throughline.bpf import maps

_MOST = 64  # as many as the queue holds


def take(table: int) -> set[int]:
    """Takes the ids of the processes that have called listen(). Raises OSError."""
    found: set[int] = set()
    for _ in range(_MOST):
        value = maps.take(table, maps.U32.size)
        if value is None:
            break
        found.add(int(maps.U32.unpack(value)[0]))
    return found
