"""Offsets of struct fields from DWARF, where names stand in the entries themselves.

.debug_info of a large program has millions of entries and no index by name. Some compilers write
the name of a type into its entry, as the first attribute (DW_FORM_string; Go: cmd/internal/dwarf).
So this module searches for the names of the wanted structs, and decodes only the entries that begin
with one. It reads sections as a stream, because they are compressed and much larger than what may
be kept in memory. Format: DWARF 4 and 5, chapter 7.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from throughline.elf import leb128, sections
from throughline.elf.elf import Elf, MalformedError

_COMPRESSED, _ZLIB = 0x800, 1  # SHF_COMPRESSED, ELFCOMPRESS_ZLIB
_TAG_MEMBER, _TAG_STRUCT, _TAG_TYPEDEF = 0x0D, 0x13, 0x16
_NAME, _MEMBER_AT, _TYPE = 0x03, 0x38, 0x49
_FORM_STRING = 0x08
# Bytes of the forms that have a fixed size, in 32-bit DWARF.
_SIZES = {0x01: 8, 0x05: 2, 0x06: 4, 0x07: 8, 0x0B: 1, 0x0C: 1, 0x0E: 4, 0x10: 4, 0x11: 1}
_SIZES |= {0x12: 2, 0x13: 4, 0x14: 8, 0x17: 4, 0x19: 0, 0x1F: 4, 0x25: 1, 0x26: 2, 0x28: 4}
_NUMBERS = (0x0D, 0x0F, 0x15, 0x1A, 0x1B)  # sdata (if positive), udata, ref_udata, strx, addrx
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
    attributes: tuple[tuple[int, int], ...]  # attribute and form


@dataclass(frozen=True, slots=True)
class _Member:
    offset: int
    type: int  # where its entry is in .debug_info


_Members = Mapping[str, _Member]


class Dwarf:
    """The structs that .debug_info describes.

    A struct counts when its entry has these attributes with these values. `check` is called while
    much is read: it raises when the caller wants no more.
    """

    def __init__(
        self, elf: Elf, *, attributes: Mapping[int, int], check: Callable[[], None]
    ) -> None:
        self._elf = elf
        self._attributes = attributes
        self._check = check
        self._info = _section(elf, "info")
        self._abbreviations: dict[int, _Abbreviation] = {}

    def offsets(self, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Offsets of fields, each asked for as "net.netFD" and "pfd.Sysfd".

        Returns nothing where the sections contradict themselves.
        """
        abbreviations = _section(self._elf, "abbrev")
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
        """The structs of these names, without those that are there twice with different fields."""
        pattern = re.compile(
            rb"(?:%s)\0" % b"|".join(re.escape(name.encode()) for name in sorted(names))
        )
        found: dict[str, list[_Members]] = {}
        count = 0
        for _, piece, fresh in self._pieces():
            for match in pattern.finditer(piece):
                if not 0 < match.start() < fresh:
                    continue
                self._check()
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
        """The structs at these places of .debug_info, or that a typedef there leads to."""
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
        """Pieces of .debug_info: start, bytes, and how many of the bytes the next piece lacks."""
        assert self._info is not None
        start, data = 0, b""
        for more in self._info.stream():
            self._check()
            data += more
            if len(data) > _PIECE_BYTES:
                fresh = len(data) - _ENTRY_BYTES
                yield start, data, fresh
                # One byte more: the abbreviation code that precedes a name.
                start, data = start + fresh - 1, data[fresh - 1 :]
        yield start, data, len(data)

    def _decode(self, data: bytes) -> dict[str, _Member] | int | None:
        """The members of a struct, or the place that a typedef leads to; None for another entry."""
        try:
            abbreviation, values, at = self._entry(data, 0)
            if abbreviation is None:
                return None
            if abbreviation.tag == _TAG_TYPEDEF:
                return values.get(_TYPE)
            if abbreviation.tag != _TAG_STRUCT or not self._attributes.items() <= values.items():
                return None
            members: dict[str, _Member] = {}
            while abbreviation.children:
                start = at
                member, values, at = self._entry(data, at)
                if member is None:
                    return members
                if member.tag != _TAG_MEMBER or member.children:
                    return None
                _, used = leb128.unsigned(data[start : start + 10])
                name = data[start + used : data.index(b"\0", start + used)]
                members[name.decode("utf-8", "replace")] = _Member(
                    values[_MEMBER_AT], values[_TYPE]
                )
            return members
        except (KeyError, IndexError, ValueError, struct.error):  # MalformedError is a ValueError
            return None

    def _entry(self, data: bytes, at: int) -> tuple[_Abbreviation | None, dict[int, int], int]:
        """An entry's abbreviation (None: the end of the children), values, and where it ends."""
        code, used = leb128.unsigned(data[at : at + 10])
        at += used
        if code == 0:
            return None, {}, at
        abbreviation = self._abbreviations[code]
        values: dict[int, int] = {}
        for attribute, form in abbreviation.attributes:
            if form == _FORM_STRING:
                at = data.index(b"\0", at) + 1
            elif form in _NUMBERS:
                values[attribute], used = leb128.unsigned(data[at : at + 10])
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
    elf: Elf
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
        """The section's bytes, decompressed, in pieces: at most a gigabyte."""
        left = _MAX_INFO_BYTES
        inflate = zlib.decompressobj() if self.compressed else None
        for at in range(0, self.size, _PIECE_BYTES):
            piece = self.elf.read(self.offset + at, min(_PIECE_BYTES, self.size - at))
            while piece and left > 0:
                data = piece
                if inflate is not None:
                    data, piece = _inflate(inflate, piece)
                else:
                    piece = b""
                left -= len(data)
                yield data


def _inflate(inflate: zlib._Decompress, data: bytes) -> tuple[bytes, bytes]:
    """Up to one decompressed piece, and the compressed bytes that are left."""
    try:
        return inflate.decompress(data, _PIECE_BYTES), inflate.unconsumed_tail
    except zlib.error as error:
        raise MalformedError(f"a section of DWARF: {error}") from error


def _section(elf: Elf, name: str) -> _Section | None:
    """None where the section is not there, or compressed by anything but zlib."""
    named = sections.named(elf)
    if old := named.get(f".zdebug_{name}"):  # GNU's own format, which Go wrote before 1.19
        return _Section(elf, old.offset + 12, old.size - 12, True)
    found = named.get(f".debug_{name}")
    if found is None:
        return None
    if not found.flags & _COMPRESSED:
        return _Section(elf, found.offset, found.size, False)
    (kind,) = struct.unpack("<I", elf.read(found.offset, 4))
    return _Section(elf, found.offset + 24, found.size - 24, True) if kind == _ZLIB else None


def _read_abbreviations(data: bytes) -> dict[int, _Abbreviation]:
    """The first table. One is enough where all units share it, as those that Go writes do."""
    found: dict[int, _Abbreviation] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value, used = leb128.unsigned(data[at : at + 10])
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
