"""What the programs have seen of traced programs, and how their calls got parents: `tl_trust`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from throughline.bpf import abi, maps

_KIND = {kind.value: kind.name.lower().removeprefix("program_") for kind in abi.ProgramKind}
_SEEN = [seen.name.lower() for seen in abi.Seen if seen < abi.Seen.ALL]
_FOUND = [found.name.lower() for found in abi.Found if found < abi.Found.ALL]
CONTRADICTIONS = tuple(_SEEN[: abi.Seen.CONTRADICTIONS])


@dataclass(frozen=True, slots=True)
class Trust:
    """Of all processes that execute one file in one cgroup."""

    cgroup_id: int
    inode: int
    device: int  # as the kernel keeps it: major << 20 | minor
    kind: str  # "unknown", or by the name of the file "threads" or "events", or "workers"
    earned: int
    seen: dict[str, int]  # enum tl_seen -> how often
    found: dict[str, int]  # enum tl_found -> calls


def read(table: int) -> Iterator[Trust]:
    """Every entry of the map, read in batches. Raises OSError."""
    for batch in maps.Hash(table, abi.PROGRAM.size, abi.TRUST.size).entries():
        for key, value in batch:
            yield decode(key, value)


def decode(key: bytes, value: bytes | memoryview) -> Trust:
    """One entry of the map."""
    program = abi.Program(*abi.PROGRAM.unpack(key))
    earned, *numbers, kind, _recalled = abi.TRUST.unpack(value)
    seen, found = numbers[: len(_SEEN)], numbers[len(_SEEN) :]
    return Trust(
        program.cgroup_id,
        program.inode,
        program.device,
        kind=_KIND[kind],
        earned=earned,
        seen=dict(zip(_SEEN, seen, strict=True)),
        found=dict(zip(_FOUND, found, strict=True)),
    )
