"""The memory of a Go program as the linker laid it out: bytes and pointers by address.

In a position-independent file a pointer is a relocation. Go's linker also writes the value into the
file (cmd/link/internal/amd64/asm.go, R_ADDR). The system's linkers leave zeros there, keep the
value in the addend of a relative relocation, and sort these by address (`-z combreloc`, their
default).
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator

from throughline.elf.elf import Elf, MalformedError, Segment
from throughline.probes import arch
from throughline.runtimes.go.program import UnsupportedError, check_stop

_DT_RELA, _DT_RELASZ, _DT_RELAENT = 7, 8, 9
_ENTRY = struct.Struct("<QQq")
_BLOCK_ENTRIES = 2048
_MAX_BLOCKS = 64  # kept: 3 MB
_MAX_RELOCATIONS = 1 << 24
_MAX_FILE_BYTES = 1 << 30
# Of processor time. A program of 100 MB takes a quarter of a second, on an emulated machine 25
# times as long.
_MAX_SECONDS = 30.0
PIECE_BYTES = 1 << 20


class Image:
    """Reads the parts of a file that are loaded; addresses are as linked.

    Made for one analysis. `check_time` ends an analysis that takes too long, or for which `stop` is
    set, by UnsupportedError.
    """

    def __init__(self, elf: Elf, stop: threading.Event | None = None) -> None:
        self.elf = elf
        self._stop = stop
        self._end = time.thread_time() + _MAX_SECONDS
        size = os.fstat(elf.fd).st_size
        if size > _MAX_FILE_BYTES:
            raise UnsupportedError(f"the file has {size >> 20} MB")
        if sum(segment.size for segment in elf.segments) > 2 * size:
            raise MalformedError("the segments are larger than the file")
        self._relocations = _relocations(elf)

    @property
    def data(self) -> tuple[Segment, ...]:
        """The segments to search for data: those without code first, since few linkers mix them."""
        return tuple(sorted(self.elf.segments, key=lambda segment: segment.executable))

    def read(self, address: int, size: int) -> bytes:
        """Up to `size` bytes, at least one; fewer where the segment ends in the file."""
        for segment in self.elf.segments:
            if segment.holds(address):
                skipped = address - segment.address
                return self.elf.read(segment.offset + skipped, min(size, segment.size - skipped))
        raise MalformedError(f"nothing is loaded at {address:#x}")

    def exactly(self, address: int, size: int) -> bytes:
        data = self.read(address, size)
        if len(data) < size:
            raise MalformedError(f"a segment ends before {address:#x}+{size:#x}")
        return data

    def pointer(self, address: int) -> int:
        """The pointer at an address, as if the file were loaded at the addresses of its linker."""
        return self.words(address, 1)[0]

    def words(self, address: int, count: int) -> list[int]:
        """The 64-bit words from an address on. Some may be pointers."""
        data = self.exactly(address, count * 8)
        words = list(struct.unpack(f"<{count}Q", data))
        if self._relocations is not None:
            for place, value in self._relocations.between(address, address + count * 8):
                words[(place - address) // 8] = value
        return words

    def pieces(self, start: int, size: int, overlap: int) -> Iterator[tuple[int, bytes]]:
        """The bytes from an address on, in pieces. Each shares `overlap` bytes with the next."""
        for at in range(start, start + size, PIECE_BYTES):
            self.check_time()
            yield at, self.read(at, min(PIECE_BYTES + overlap, start + size - at))

    def check_time(self) -> None:
        check_stop(self._stop)
        if time.thread_time() > self._end:
            raise UnsupportedError(f"not understood within {_MAX_SECONDS:.0f} s")

    def find_pointers(self, value: int) -> Iterator[int]:
        """The addresses of aligned words that point to `value`."""
        wanted = struct.pack("<Q", value)
        for segment in self.data:
            for at, piece in self.pieces(segment.address, segment.size, 7):
                found = piece.find(wanted)
                while found >= 0:
                    if (at + found) % 8 == 0:
                        yield at + found
                    found = piece.find(wanted, found + 1)
        if self._relocations is not None:
            yield from self._relocations.pointing_to(value)


class _Relocations:
    """The entries of .rela.dyn, looked up by bisection."""

    def __init__(self, elf: Elf, offset: int, count: int) -> None:
        self._elf = elf
        self._offset = offset
        self._count = count
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def between(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Address and value of the words that are relocated."""
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            if self._entry(middle)[0] < start:
                low = middle + 1
            else:
                high = middle
        # No two entries relocate one word, so this many entries are enough.
        for index in range(low, min(low + (end - start) // 8, self._count)):
            place, kind, value = self._entry(index)
            if not start <= place < end:
                return
            if kind == arch.here().RELATIVE and place % 8 == start % 8:
                yield place, value

    def pointing_to(self, value: int) -> Iterator[int]:
        wanted = struct.pack("<Qq", arch.here().RELATIVE, value)
        for first in range(0, self._count, _BLOCK_ENTRIES):
            block = self._read(first)
            found = block.find(wanted)
            while found >= 0:
                if found % _ENTRY.size == 8:
                    yield int(_ENTRY.unpack_from(block, found - 8)[0])
                found = block.find(wanted, found + 1)

    def _entry(self, index: int) -> tuple[int, int, int]:
        first = index - index % _BLOCK_ENTRIES
        block = self._blocks.get(first)
        if block is None:
            block = self._blocks[first] = self._read(first)
            if len(self._blocks) > _MAX_BLOCKS:
                self._blocks.popitem(last=False)
        place, kind, value = _ENTRY.unpack_from(block, (index - first) * _ENTRY.size)
        return place, kind, value & 0xFFFFFFFFFFFFFFFF

    def _read(self, first: int) -> bytes:
        count = min(_BLOCK_ENTRIES, self._count - first)
        return self._elf.read(self._offset + first * _ENTRY.size, count * _ENTRY.size)


def _relocations(elf: Elf) -> _Relocations | None:
    tags = elf.tags()
    if _DT_RELA not in tags or tags.get(_DT_RELAENT, _ENTRY.size) != _ENTRY.size:
        return None
    count = tags.get(_DT_RELASZ, 0) // _ENTRY.size
    offset = elf.offset(tags[_DT_RELA])
    if offset is None or count > _MAX_RELOCATIONS:
        raise MalformedError(f"{count} relocations at {tags[_DT_RELA]:#x}")
    return _Relocations(elf, offset, count)
