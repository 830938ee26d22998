"""Numbers of Go programs in tl_go_binaries, given to new programs when the old ones are gone."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from throughline.bpf import abi, libbpf, maps

LAYOUT_BYTES = 8  # struct tl_unit_layout, which begins with the index
PROCESS_KEY_BYTES = 8  # tl_process_key() in bpf/core/process.h


class GoIndices:
    """Which part of which program has which index. 0 is none."""

    def __init__(self, loaded: libbpf.Object) -> None:
        self._binaries = loaded.map_fd("tl_go_binaries")
        self._processes = loaded.map_fd("tl_unit_layouts")
        self._starts = loaded.map_fd("tl_go_starts")
        self._started = loaded.map_fd("tl_go_started")
        self._of: dict[str, int] = {}
        # what was given back longest ago is taken first: its probes take a moment to go
        self._free = deque(range(1, abi.Go.BINARIES))

    def take(self, name: str, packed: bytes) -> int:
        """The index of what has this name and this struct tl_go_binary; 0 if none is left."""
        index = self._of.get(name, 0)
        if not index and self._free:
            index = self._of[name] = self._free.popleft()
            self._forget(index)  # what the last probes of the one before have said since
            maps.update(self._binaries, index.to_bytes(4, "little"), packed)
        return index

    def keep(self, used: Collection[int]) -> None:
        """Gives back all others."""
        for name, index in list(self._of.items()):
            if index not in used:
                del self._of[name]
                self._free.append(index)
                self._forget(index)

    def _forget(self, index: int) -> None:
        """Nobody has been seen to run it, and nothing is known of its functions."""
        wanted = index.to_bytes(4, "little")
        for key in list(maps.keys(self._processes, PROCESS_KEY_BYTES)):
            layout = maps.lookup(self._processes, key, LAYOUT_BYTES)
            if layout is not None and layout.startswith(wanted):
                maps.delete(self._processes, key)
        for key in list(maps.keys(self._starts, abi.GO_START_KEY.size)):
            if abi.GoStartKey(*abi.GO_START_KEY.unpack(key)).binary == index:
                maps.delete(self._starts, key)
        maps.update(self._started, wanted, bytes(4))
