"""tl_contradicted: what contradicts programs, kept for when their services begin again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from throughline.bpf import abi, maps
from throughline.bpf.trust import CONTRADICTIONS
from throughline.steps import Turns

MAX_ENTRIES = 4096
_BITS = {"cgroup": 64, "inode": 64, "size": 64, "device": 32, "generation": 32}


@dataclass(frozen=True, slots=True)
class Contradicted:
    """A program of the services whose cgroups have one name."""

    cgroup: int  # a hash of the last part of the path
    inode: int
    size: int
    device: int  # as the kernel keeps it: major << 20 | minor
    generation: int  # of the inode
    seen: tuple[str, ...]  # of CONTRADICTIONS

    def __post_init__(self) -> None:
        """Raises ValueError for what no entry can hold."""
        for name, bits in _BITS.items():
            if not 0 <= getattr(self, name) < 1 << bits:
                raise ValueError(f"{name} is out of range")
        if not set(self.seen) <= set(CONTRADICTIONS):
            raise ValueError("an unknown contradiction")


def read(table: int) -> Turns[tuple[Contradicted, ...]]:
    """Every entry of the map. Raises OSError."""
    found: list[Contradicted] = []
    for batch in maps.Hash(table, abi.LASTING.size, maps.U64.size).entries():
        found += (_decode(key, value) for key, value in batch)
        yield
    return tuple(found)


def add(table: int, programs: Iterable[Contradicted]) -> None:
    """Adds to the map what it does not have. Raises OSError."""
    for one in programs:
        key = abi.LASTING.pack(
            *abi.Lasting(one.cgroup, one.inode, one.size, one.device, one.generation)
        )
        known = maps.lookup(table, key, maps.U64.size)
        seen = maps.U64.unpack(known)[0] if known else 0
        for what in one.seen:
            seen |= 1 << CONTRADICTIONS.index(what)
        maps.update(table, key, maps.U64.pack(seen))


def _decode(key: bytes, value: memoryview) -> Contradicted:
    (seen,) = maps.U64.unpack(value)
    names = tuple(name for bit, name in enumerate(CONTRADICTIONS) if seen >> bit & 1)
    return Contradicted(*abi.Lasting(*abi.LASTING.unpack(key)), seen=names)
