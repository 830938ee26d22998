"""Struct layouts from DWARF, for what the type data lacks.

.debug_info of a large program has millions of entries, and says nowhere where a type is. Go writes
names into the entries themselves (DW_FORM_string, the first attribute; cmd/internal/dwarf), so the
names of the structs are searched for, and only the entries that they begin are decoded. Sections
are read as a stream: they are compressed, and far larger than what may be kept.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from throughline.elf.elf import MalformedError
from throughline.runtimes.go import sections
from throughline.runtimes.go.buildinfo import uvarint
from throughline.runtimes.go.image import Image

_COMPRESSED, _ZLIB = 0x800, 1  # of a section's flags; how
_TAG_MEMBER, _TAG_STRUCT, _TAG_TYPEDEF = 0x0D, 0x13, 0x16
_NAME, _MEMBER_AT, _TYPE, _GO_KIND = 0x03, 0x38, 0x49, 0x2900
_FORM_STRING = 0x08
_STRUCT_KIND = 25
# bytes of the forms that have a fixed size, in 32-bit DWARF
_SIZES = {0x01: 8, 0x05: 2, 0x06: 4, 0x07: 8, 0x0B: 1, 0x0C: 1, 0x0E: 4, 0x10: 4, 0x11: 1}
_SIZES |= {0x12: 2, 0x13: 4, 0x14: 8, 0x17: 4, 0x19: 0, 0x1F: 4, 0x25: 1, 0x26: 2, 0x28: 4}
_NUMBERS = (0x0D, 0x0F, 0x15, 0x1A, 0x1B)  # sdata (small ones), udata, ref_udata, strx, addrx
_PIECE_BYTES = 1 << 20
_ENTRY_BYTES = 1 << 14  # of a struct with its fields
_MAX_ABBREVIATIONS_BYTES = 1 << 16
_MAX_ABBREVIATIONS = 1 << 10
_MAX_INFO_BYTES = 1 << 30
_MAX_CANDIDATES = 1 << 12
_MAX_DEPTH = 4


@dataclass(frozen=True, slots=True)
class _Abbreviation:
    tag: int
    children: bool
    attributes: tuple[tuple[int, int], ...]  # and their forms


@dataclass(frozen=True, slots=True)
class _Member:
    offset: int
    type: int  # where its entry is in .debug_info


_Members = Mapping[str, _Member]


class Dwarf:
    """What the compiler wrote of its structs."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._info = _section(image, "info")
        self._abbreviations: dict[int, _Abbreviation] = {}

    def offsets(self, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Offsets of fields, each asked for as "net.netFD" and "pfd.Sysfd".

        Sections that contradict themselves say nothing: nobody else needs them.
        """
        abbreviations = _section(self._image, "abbrev")
        if self._info is None or abbreviations is None or not wanted:
            return {}
        try:
            self._abbreviations = _read_abbreviations(abbreviations.start(_MAX_ABBREVIATIONS_BYTES))
            return self._offsets(wanted)
        except MalformedError:
            return {}

    def _offsets(self, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], int]:
        structs = self._structs({owner for owner, _ in wanted})
        found: dict[tuple[str, str], int] = {}
        waiting = [
            (key, 0, structs[key[0]], key[1].split(".")) for key in wanted if key[0] in structs
        ]
        for _ in range(_MAX_DEPTH):
            below = []
            for key, start, members, (name, *path) in waiting:
                member = members.get(name)
                if member is not None and path:
                    below.append((key, start + member.offset, member.type, path))
                elif member is not None:
                    found[key] = start + member.offset
            inner = self._at({place for _, _, place, _ in below})
            waiting = [
                (key, start, inner[place], path)
                for key, start, place, path in below
                if place in inner
            ]
        return found

    def _structs(self, names: set[str]) -> dict[str, _Members]:
        """The structs of these names; what is there twice with other fields is left out."""
        pattern = re.compile(
            rb"(?:%s)\0" % b"|".join(re.escape(name.encode()) for name in sorted(names))
        )
        found: dict[str, list[_Members]] = {}
        count = 0
        for _, piece, fresh in self._pieces():
            for match in pattern.finditer(piece):
                if not 0 < match.start() < fresh:
                    continue
                self._image.check_time()
                count += 1
                if count > _MAX_CANDIDATES:
                    raise MalformedError("names in .debug_info repeat without end")
                members = self._decode(piece[match.start() - 1 :][:_ENTRY_BYTES])
                if isinstance(members, dict):
                    found.setdefault(match.group()[:-1].decode(), []).append(members)
        return {
            name: members[0]
            for name, members in found.items()
            if all(other == members[0] for other in members)
        }

    def _at(self, places: set[int]) -> dict[int, _Members]:
        """The structs at these places, also behind a typedef."""
        found: dict[int, _Members] = {}
        aliases = {place: place for place in places}  # where to look -> for which place
        for _ in range(2):
            after: dict[int, int] = {}
            for start, piece, fresh in self._pieces() if aliases else ():
                for place in [place for place in aliases if start <= place < start + fresh]:
                    entry = self._decode(piece[place - start :][:_ENTRY_BYTES])
                    if isinstance(entry, dict):
                        found[aliases[place]] = entry
                    elif entry is not None:
                        after[entry] = aliases[place]
            aliases = after
        return found

    def _pieces(self) -> Iterator[tuple[int, bytes, int]]:
        """Pieces of .debug_info: where they begin, and how much of them is not in the next one."""
        assert self._info is not None
        start, data = 0, b""
        for more in self._info.stream():
            self._image.check_time()
            data += more
            if len(data) > _PIECE_BYTES:
                fresh = len(data) - _ENTRY_BYTES
                yield start, data, fresh
                # one byte more: what precedes a name
                start, data = start + fresh - 1, data[fresh - 1 :]
        yield start, data, len(data)

    def _decode(self, data: bytes) -> dict[str, _Member] | int | None:
        """The members of a struct, or where a typedef leads; None for anything else."""
        try:
            abbreviation, values, at = self._entry(data, 0)
            if abbreviation is None:
                return None
            if abbreviation.tag == _TAG_TYPEDEF:
                return values.get(_TYPE)
            if abbreviation.tag != _TAG_STRUCT or values.get(_GO_KIND) != _STRUCT_KIND:
                return None
            members: dict[str, _Member] = {}
            while abbreviation.children:
                start = at
                member, values, at = self._entry(data, at)
                if member is None:
                    return members
                if member.tag != _TAG_MEMBER or member.children:
                    return None
                _, used = uvarint(data[start : start + 10])
                name = data[start + used : data.index(b"\0", start + used)]
                members[name.decode("utf-8", "replace")] = _Member(
                    values[_MEMBER_AT], values[_TYPE]
                )
            return members
        except (KeyError, IndexError, ValueError, struct.error):  # MalformedError is a ValueError
            return None

    def _entry(self, data: bytes, at: int) -> tuple[_Abbreviation | None, dict[int, int], int]:
        """The abbreviation of an entry, None for the end of children; values; where it ends."""
        code, used = uvarint(data[at : at + 10])
        at += used
        if code == 0:
            return None, {}, at
        abbreviation = self._abbreviations[code]
        values: dict[int, int] = {}
        for attribute, form in abbreviation.attributes:
            if form == _FORM_STRING:
                at = data.index(b"\0", at) + 1
            elif form in _NUMBERS:
                values[attribute], used = uvarint(data[at : at + 10])
                at += used
            else:
                size = _SIZES[form]
                values[attribute] = int.from_bytes(data[at : at + size], "little")
                at += size
            if at > len(data):
                raise MalformedError("an entry of .debug_info has no end")
        return abbreviation, values, at


@dataclass(frozen=True, slots=True)
class _Section:
    image: Image
    offset: int
    size: int
    compressed: bool

    def start(self, size: int) -> bytes:
        data = b""
        for piece in self.stream():
            data += piece
            if len(data) >= size:
                break
        return data[:size]

    def stream(self) -> Iterator[bytes]:
        """Its bytes in pieces, at most a gigabyte of them."""
        left = _MAX_INFO_BYTES
        inflate = zlib.decompressobj() if self.compressed else None
        for at in range(0, self.size, _PIECE_BYTES):
            piece = self.image.elf.read(self.offset + at, min(_PIECE_BYTES, self.size - at))
            while piece and left > 0:
                data = piece
                if inflate is not None:
                    data, piece = _inflate(inflate, piece)
                else:
                    piece = b""
                left -= len(data)
                yield data


def _inflate(inflate: zlib._Decompress, data: bytes) -> tuple[bytes, bytes]:
    """Up to a piece of what is compressed, and what has not been looked at."""
    try:
        return inflate.decompress(data, _PIECE_BYTES), inflate.unconsumed_tail
    except zlib.error as error:
        raise MalformedError(f"a section of DWARF: {error}") from error


def _section(image: Image, name: str) -> _Section | None:
    """None where it is not there, or compressed in a way that Go's linker does not."""
    elf = image.elf
    named = sections.named(elf)
    if old := named.get(f".zdebug_{name}"):  # Go's linker before 1.19
        return _Section(image, old.offset + 12, old.size - 12, True)
    found = named.get(f".debug_{name}")
    if found is None:
        return None
    if not found.flags & _COMPRESSED:
        return _Section(image, found.offset, found.size, False)
    (kind,) = struct.unpack("<I", elf.read(found.offset, 4))
    return _Section(image, found.offset + 24, found.size - 24, True) if kind == _ZLIB else None


def _read_abbreviations(data: bytes) -> dict[int, _Abbreviation]:
    """The first table: all units that Go's compiler writes share it."""
    found: dict[int, _Abbreviation] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value, used = uvarint(data[at : at + 10])
        at += used
        return value

    while len(found) < _MAX_ABBREVIATIONS and (code := number()):
        tag, children = number(), number()
        attributes = []
        while pair := [number(), number()]:
            if pair == [0, 0]:
                break
            attributes.append((pair[0], pair[1]))
        found.setdefault(code, _Abbreviation(tag, bool(children), tuple(attributes)))
    return found
