"""Go's function table: names and addresses of all functions, in stripped binaries too.

Layout of Go 1.18 to 1.27: runtime.pcHeader and _func in runtime/symtab.go and runtime2.go, written
by cmd/link/internal/ld/pcln.go. The table of a large program has 150,000 functions, so no loop of
Python runs over them: names are compared as a set, records as an array.
"""

from __future__ import annotations

import operator
import struct
from array import array
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

from throughline.elf.elf import MalformedError
from throughline.elf.sections import Section
from throughline.probes import arch
from throughline.runtimes.go.image import PIECE_BYTES, Image

MAGICS = (0xFFFFFFF0, 0xFFFFFFF1)  # Go 1.18, Go 1.20
_HEADER = struct.Struct("<IBBBBQQQQQQQQ")
_MAX_FUNCTIONS = 1 << 20  # the largest programs have 250,000
_MAX_TABLE_BYTES = 1 << 31
_FUNCTIONS = 1 << 12  # looked at together
_MAX_RECORDS_BYTES = 1 << 22  # of so many functions
_RECORD_BYTES, _LINE_WORD = 40, 9  # the part of a record that all releases have; startLine
_MAX_SAME = 16  # functions of one name


@dataclass(frozen=True, slots=True)
class Entry:
    """A function."""

    start: int  # from the start of the text
    end: int
    name_at: int  # from the start of the names
    line: int  # where it begins in its file; since Go 1.20


@dataclass(frozen=True, slots=True)
class Table:
    """Where the parts of the function table are, in addresses as linked."""

    address: int
    count: int
    names: int
    names_size: int
    functions: int  # pairs of entry and record

    def lookup(self, image: Image, wanted: Iterable[bytes]) -> dict[bytes, list[Entry]]:
        """Name -> the functions of that name. There may be several."""
        by_name = self._names(image, set(wanted))
        found: dict[bytes, list[Entry]] = {}
        for entry in self._records(image, by_name) if by_name else ():
            entries = found.setdefault(by_name[entry.name_at], [])
            if len(entries) < _MAX_SAME:
                entries.append(entry)
        return found

    def starts(self, image: Image) -> array[int]:
        """Where each function begins, and where the last one ends, from the start of the text."""
        found = array("I")
        for first in range(0, self.count, _FUNCTIONS):
            image.check_time()
            count = min(_FUNCTIONS, self.count - first)
            pairs = memoryview(image.exactly(self.functions + first * 8, count * 8)).cast("I")
            found.extend(pairs[::2])
            _check_order(found[max(first - 1, 0) :])
        found.frombytes(image.exactly(self.functions + self.count * 8, 4))
        _check_order(found[-2:])
        return found

    def _names(self, image: Image, wanted: set[bytes]) -> dict[int, bytes]:
        """Place of a wanted name -> name. The names follow each other, each ended by a zero."""
        found: dict[int, bytes] = {}
        at, rest = self.names, b""
        end = self.names + self.names_size
        while at < end:
            image.check_time()
            data = rest + image.read(at, min(PIECE_BYTES, end - at))
            start = at - len(rest) - self.names
            whole = data.rfind(b"\0") + 1
            if not whole and len(data) > PIECE_BYTES:
                raise MalformedError("a function's name has no end")
            framed = b"\0" + data[:whole]
            for name in wanted.intersection(framed.split(b"\0")):
                place = framed.find(b"\0" + name + b"\0")
                while place >= 0 and len(found) < len(wanted) * _MAX_SAME:
                    found[start + place] = name
                    place = framed.find(b"\0" + name + b"\0", place + 1)
            at = at + len(data) - len(rest)
            rest = data[whole:]
        return found

    def _records(self, image: Image, by_name: Container[int]) -> Iterator[Entry]:
        for first in range(0, self.count, _FUNCTIONS):
            image.check_time()
            count = min(_FUNCTIONS, self.count - first)
            # One word more: where the last function ends.
            pairs = memoryview(
                image.exactly(self.functions + first * 8, count * 8 + 4) + bytes(4)
            ).cast("I")
            starts, records = pairs[::2].tolist(), pairs[1::2].tolist()[:-1]
            low, high = min(records), max(records)
            if high - low > _MAX_RECORDS_BYTES or low % 4:
                raise MalformedError("the function table is not in order")
            data = image.exactly(self.functions + low, (high - low & ~3) + _RECORD_BYTES)
            words = memoryview(data).cast("I")
            names = [words[(record - low) // 4 + 1] for record in records]
            for index, name in enumerate(names):
                if name in by_name:
                    line = words[(records[index] - low) // 4 + _LINE_WORD]
                    yield Entry(starts[index], starts[index + 1], name, line)


def _check_order(starts: array[int]) -> None:
    if any(map(operator.gt, starts, starts[1:])):
        raise MalformedError("the function table is not in order")


def tables(image: Image, section: Section | None) -> Iterator[Table]:
    """The function table of the section; else everything in the file that looks like one."""
    table = None if section is None else _table(image, section.address)
    if table is not None:
        yield table
        return
    for segment in image.data:
        for at, piece in image.pieces(segment.address, segment.size, 15):
            for address in _places(piece, at):
                table = _table(image, address)
                if table is not None:
                    yield table


def _places(piece: bytes, at: int) -> Iterator[int]:
    for magic in MAGICS:
        # magic, two zeros, the bytes between two places of code, pointers of eight
        wanted = struct.pack("<IBBBB", magic, 0, 0, arch.here().CODE_STEP, 8)
        found = piece.find(wanted)
        while found >= 0:
            if (at + found) % 8 == 0:
                yield at + found
            found = piece.find(wanted, found + 1)


def _table(image: Image, address: int) -> Table | None:
    data = image.read(address, _HEADER.size)
    if len(data) < _HEADER.size:
        return None
    magic, *pads, quantum, pointer, count, _, _, names, units, files, values, lines = (
        _HEADER.unpack(data)
    )
    if magic not in MAGICS or pads != [0, 0] or quantum != arch.here().CODE_STEP or pointer != 8:
        return None
    offsets = [_HEADER.size, names, units, files, values, lines, _MAX_TABLE_BYTES]
    if offsets != sorted(offsets) or not 0 < count <= _MAX_FUNCTIONS:
        return None
    return Table(address, count, address + names, units - names, address + lines)
