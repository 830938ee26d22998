"""Indices of tl_go_binaries: which part of which program has which, and which are free."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from throughline.bpf import abi, libbpf, maps

LAYOUT_BYTES = 8  # struct tl_unit_layout, which begins with the index
PROCESS_KEY_BYTES = 8  # tl_process_key() in bpf/core/process.h
_INDEX_BYTES = 4


class Indices:
    """Gives an index to each part of a program that has offsets of its own. 0 is no index."""

    def __init__(self, loaded: libbpf.Object) -> None:
        self._binaries = loaded.map_fd("tl_go_binaries")
        self._processes = loaded.map_fd("tl_unit_layouts")
        self._starts = loaded.map_fd("tl_go_starts")
        self._started = loaded.map_fd("tl_go_started")
        self._taken: dict[str, int] = {}  # name -> index
        # The index that has been free longest is taken first: the probes that have it in their
        # cookies take a moment to be detached.
        self._free = deque(range(1, abi.Go.BINARIES))

    def take(self, name: str, packed: bytes) -> int:
        """The index of the part with this name and this struct tl_go_binary; 0 if none is free."""
        index = self._taken.get(name, 0)
        if not index and self._free:
            index = self._taken[name] = self._free.popleft()
            self._clear(index)  # the last probes of its former part may have written since
            maps.update(self._binaries, index.to_bytes(_INDEX_BYTES, "little"), packed)
        return index

    def keep(self, used: Collection[int]) -> None:
        """Frees all other indices: those of programs that are not probed any more."""
        for name, index in list(self._taken.items()):
            if index not in used:
                del self._taken[name]
                self._free.append(index)
                self._clear(index)

    def _clear(self, index: int) -> None:
        """Removes all processes and functions that the maps have for an index."""
        wanted = index.to_bytes(_INDEX_BYTES, "little")
        for key in list(maps.keys(self._processes, PROCESS_KEY_BYTES)):
            layout = maps.lookup(self._processes, key, LAYOUT_BYTES)
            if layout is not None and layout.startswith(wanted):
                maps.delete(self._processes, key)
        for key in list(maps.keys(self._starts, abi.GO_START_KEY.size)):
            if abi.GoStartKey(*abi.GO_START_KEY.unpack(key)).binary == index:
                maps.delete(self._starts, key)
        maps.update(self._started, wanted, bytes(_INDEX_BYTES))
