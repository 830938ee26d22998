"""64-bit ELF files: addresses, symbols, sections, read in pieces as small as the question.

The files belong to traced processes, so nothing in them is trusted. Every count has a limit. The
file is read, not mapped, because a mapping of a file that shrinks would end the agent. A file that
contradicts itself raises MalformedError. Dynamic symbols are found by the file's own hash table,
which takes the same few reads in a file of 100 MB. Formats: gABI chapters 4 and 5, and for
DT_GNU_HASH the source of glibc (elf/dl-lookup.c).
"""

from __future__ import annotations

import copy
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little endian
_TYPES = (2, 3)  # ET_EXEC, ET_DYN
_PT_LOAD, _PT_DYNAMIC, _PT_NOTE, _PF_X = 1, 2, 4, 1
_SHT_SYMTAB = 2
_STT_OBJECT, _STT_FUNC, _STT_TLS = 1, 2, 6
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH = 4, 5, 6, 0x6FFFFEF5

_MAX_OFFSET = (1 << 63) - 1  # the limit of off_t, and of the addresses of programs
_MAX_SEGMENTS = 128
_PAGE_BYTES = 1 << 16  # the largest of any machine
_MAX_SECTIONS = 1024
_MAX_DYNAMIC_BYTES = 1 << 14
_MAX_CHAIN = 1 << 12
_MAX_STATIC_BYTES = 1 << 25  # .symtab, and its strings
_MAX_STRINGS = 64  # strings that end in one of the wanted names
_PIECE_BYTES = 24 << 15  # a multiple of the size of a symbol


class MalformedError(ValueError):
    """An ELF file that contradicts itself, or has more of something than linkers write."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function or variable that a symbol names."""

    address: int  # as linked
    size: int  # bytes; 0 where the symbol has no size


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the file that is loaded, or that holds notes."""

    offset: int
    address: int  # as linked
    size: int  # bytes in the file
    executable: bool

    def holds(self, address: int) -> bool:
        return self.address <= address < self.address + self.size


class Elf:
    """An ELF file behind a descriptor that the caller opened and closes."""

    def __init__(self, fd: int, header: bytes) -> None:
        self._fd = fd
        fields = _HEADER.unpack(header)
        self._sections_at, self._section_bytes, self._sections = fields[6], *fields[11:13]
        self._segments: list[Segment] = []
        self.notes: list[Segment] = []
        self._dynamic: tuple[int, int] | None = None
        offset, size, count = fields[5], *fields[9:11]
        if count and (size != _SEGMENT.size or count > _MAX_SEGMENTS):
            raise MalformedError(f"{count} program headers of {size} bytes")
        for kind, flags, start, address, _, length, *_ in _SEGMENT.iter_unpack(
            self.read(offset, count * _SEGMENT.size)
        ):
            if kind in (_PT_LOAD, _PT_DYNAMIC, _PT_NOTE):
                _check(start, length)
                _check(address, length)
            if kind == _PT_LOAD:
                self._segments.append(Segment(start, address, length, bool(flags & _PF_X)))
            elif kind == _PT_DYNAMIC:
                self._dynamic = (start, min(length, _MAX_DYNAMIC_BYTES))
            elif kind == _PT_NOTE:
                self.notes.append(Segment(start, address, length, False))

    @classmethod
    def open(cls, fd: int, *, machine: int) -> Elf | None:
        """None unless it is a regular file with a 64-bit program or library for this e_machine."""
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        header = os.pread(fd, _HEADER.size, 0)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            return None
        _, kind, found, *_ = _HEADER.unpack(header)
        return cls(fd, header) if kind in _TYPES and found == machine else None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The parts of the file that are loaded."""
        return tuple(self._segments)

    @property
    def fd(self) -> int:
        return self._fd

    def behind(self, fd: int) -> Elf:
        """The same file, read through another descriptor."""
        found = copy.copy(self)
        found._fd = fd
        return found

    # -- addresses -------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of the file."""
        _check(offset, size)
        data = os.pread(self._fd, size, offset)
        if len(data) < size:
            raise MalformedError(f"ends before {offset:#x}+{size:#x}")
        return data

    def offset(self, address: int, *, executable: bool = False) -> int | None:
        """The place in the file of the byte at `address`.

        None where the file does not hold that address, or not as code when `executable` is asked.
        """
        for segment in self._segments:
            if segment.holds(address) and (segment.executable or not executable):
                return segment.offset + address - segment.address
        return None

    def mapped_address(self, offset: int) -> int | None:
        """The address, as linked, at which a mapping of code begins that starts here in the file.

        Mappings are of whole pages: it may begin before the segment does. None: no code is there.
        """
        for segment in self._segments:
            if segment.executable and -_PAGE_BYTES < offset - segment.offset < segment.size:
                return segment.address + offset - segment.offset
        return None

    def code(self, address: int, size: int) -> bytes:
        """Up to `size` bytes of code at an address; none where the file has no code there."""
        for segment in self._segments:
            if segment.executable and segment.holds(address):
                skipped = address - segment.address
                return self.read(segment.offset + skipped, min(size, segment.size - skipped))
        return b""

    def _at(self, address: int, size: int) -> bytes:
        offset = self.offset(address)
        if offset is None:
            raise MalformedError(f"no segment holds {address:#x}")
        return self.read(offset, size)

    # -- symbols ---------------------------------------------------------------------------------

    def functions(self, key: str, others: Iterable[str]) -> dict[str, Function]:
        """The functions of these names that the file defines; empty where it has no `key`.

        Looks for `key` in the dynamic symbols. A file without it there is searched through where it
        has a .symtab of at most 32 MB (a program that is linked statically and not stripped).
        """
        for find in (self._dynamic_functions, self._static_functions):
            found = find([key])
            if found:
                return found | find(list(others))
        return {}

    def objects(self, names: Iterable[str]) -> dict[str, Function]:
        """The variables of these names that the file exports."""
        return self._dynamic_symbols(list(names), _STT_OBJECT)

    def thread_variable(self, name: str) -> tuple[int, int] | None:
        """The index of the symbol of a thread-local variable, and its offset in the module."""
        for index, symbol in self._dynamic_chain(name):
            _, kind, _, section, offset, _ = _SYMBOL.unpack(symbol)
            if kind & 15 == _STT_TLS and section:
                return index, offset
        return None

    def variables(self, names: Iterable[str]) -> dict[str, int]:
        """The addresses, as linked, of the variables of these names that the file exports."""
        return {name: symbol.address for name, symbol in self.objects(names).items()}

    def _dynamic_functions(self, names: list[str]) -> dict[str, Function]:
        return self._dynamic_symbols(names, _STT_FUNC)

    def _dynamic_symbols(self, names: list[str], kind: int) -> dict[str, Function]:
        found: dict[str, Function] = {}
        for name in names:
            for _, symbol in self._dynamic_chain(name):
                function = _function(symbol, kind)
                if function is not None:
                    found[name] = function
                    break
        return found

    def _dynamic_chain(self, name: str) -> Iterator[tuple[int, bytes]]:
        """The indices and entries of the dynamic symbols of this name."""
        tags = self.tags()
        if _DT_SYMTAB not in tags or _DT_STRTAB not in tags:
            return
        if _DT_GNU_HASH in tags:
            lookup, table = self._gnu_chain, tags[_DT_GNU_HASH]
        elif _DT_HASH in tags:
            lookup, table = self._sysv_chain, tags[_DT_HASH]
        else:
            return
        wanted = name.encode() + b"\0"
        for index in lookup(table, name.encode()):
            symbol = self._at(tags[_DT_SYMTAB] + index * _SYMBOL.size, _SYMBOL.size)
            string = tags[_DT_STRTAB] + _SYMBOL.unpack(symbol)[0]
            if self._at(string, len(wanted)) == wanted:
                yield index, symbol

    def tags(self) -> dict[int, int]:
        """The dynamic section: tag -> value."""
        if self._dynamic is None:
            return {}
        offset, size = self._dynamic
        tags: dict[int, int] = {}
        for tag, value in struct.iter_unpack("<qQ", self.read(offset, size - size % 16)):
            if tag == 0:
                break
            tags[tag] = value
        return tags

    def _gnu_chain(self, table: int, name: bytes) -> Iterator[int]:
        """The indices of the symbols whose names have the hash of `name`."""
        buckets, first, words, shift = struct.unpack("<IIII", self._at(table, 16))
        if not buckets or not words or shift > 31:
            raise MalformedError(f"DT_GNU_HASH has {buckets} buckets, {words} words")
        hashed = gnu_hash(name)
        (word,) = struct.unpack("<Q", self._at(table + 16 + hashed // 64 % words * 8, 8))
        if not word >> hashed % 64 & word >> (hashed >> shift) % 64 & 1:
            return
        heads = table + 16 + words * 8
        (index,) = struct.unpack("<I", self._at(heads + hashed % buckets * 4, 4))
        if index < first:
            return
        chain = heads + buckets * 4 - first * 4
        for index in range(index, index + _MAX_CHAIN):  # noqa: B020 - goes on from its head
            (value,) = struct.unpack("<I", self._at(chain + index * 4, 4))
            if value | 1 == hashed | 1:
                yield index
            if value & 1:
                return
        raise MalformedError("a chain of DT_GNU_HASH has no end")

    def _sysv_chain(self, table: int, name: bytes) -> Iterator[int]:
        """The indices of the symbols that may have this name."""
        buckets, count = struct.unpack("<II", self._at(table, 8))
        if not buckets:
            raise MalformedError("DT_HASH has no buckets")
        (index,) = struct.unpack("<I", self._at(table + 8 + sysv_hash(name) % buckets * 4, 4))
        for _ in range(min(count, _MAX_CHAIN)):
            if index == 0:
                return
            yield index
            (index,) = struct.unpack("<I", self._at(table + 8 + (buckets + index) * 4, 4))
        raise MalformedError("a chain of DT_HASH has no end")

    def _static_functions(self, names: list[str]) -> dict[str, Function]:
        tables = self._symtab()
        if tables is None:
            return {}
        (symbols_at, symbols_size), (strings_at, strings_size) = tables
        wanted = self._search(names, strings_at, strings_size)
        found: dict[str, Function] = {}
        looked_at = 0
        for start in range(0, symbols_size if wanted else 0, _PIECE_BYTES):
            piece = self.read(symbols_at + start, min(_PIECE_BYTES, symbols_size - start))
            strings = memoryview(piece).cast("I")[:: _SYMBOL.size // 4].tolist()
            for index in [index for index, string in enumerate(strings) if string in wanted]:
                looked_at += 1
                if looked_at > _MAX_CHAIN:
                    raise MalformedError(".symtab repeats a name")
                function = _function(piece[index * _SYMBOL.size : (index + 1) * _SYMBOL.size])
                if function is not None:
                    found.setdefault(wanted[strings[index]], function)
        return found

    def _symtab(self) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Offset and size of .symtab and of its strings; None where missing or too large."""
        headers = self.section_headers()
        for header in headers:
            if header[1] == _SHT_SYMTAB and header[6] < len(headers):
                strings = headers[header[6]]
                size = header[5] - header[5] % _SYMBOL.size
                if max(size, strings[5]) > _MAX_STATIC_BYTES:
                    return None
                return (header[4], size), (strings[4], strings[5])
        return None

    def section_headers(self) -> list[tuple[int, ...]]:
        """For each section: name, type, flags, address, offset, size, link, info, alignment, entry
        size."""
        if not self._sections_at or self._section_bytes != _SECTION.size:
            return []
        if self._sections > _MAX_SECTIONS:
            raise MalformedError(f"{self._sections} sections")
        return list(
            _SECTION.iter_unpack(self.read(self._sections_at, self._sections * _SECTION.size))
        )

    def _search(self, names: list[str], start: int, size: int) -> dict[int, str]:
        """Place in the strings -> name. Linkers let a name share the end of a longer string."""
        found: dict[int, str] = {}
        overlap = max(map(len, names), default=0)
        for offset in range(0, size, _PIECE_BYTES):
            piece = self.read(start + offset, min(_PIECE_BYTES + overlap, size - offset))
            for name in names:
                wanted = name.encode() + b"\0"
                at = piece.find(wanted)
                while at >= 0:
                    found[offset + at] = name
                    if len(found) > _MAX_STRINGS:
                        raise MalformedError(f"{name!r} and others are there {len(found)} times")
                    at = piece.find(wanted, at + 1)
        return found


def _check(start: int, size: int) -> None:
    if start + size > _MAX_OFFSET:
        raise MalformedError(f"{start:#x}+{size:#x} is no place in a file or in memory")


def gnu_hash(name: bytes) -> int:
    value = 5381
    for byte in name:
        value = (value * 33 + byte) & 0xFFFFFFFF
    return value


def sysv_hash(name: bytes) -> int:
    value = 0
    for byte in name:
        value = (value << 4) + byte
        value = (value ^ (value & 0xF0000000) >> 24) & 0x0FFFFFFF
    return value


def _function(symbol: bytes, wanted: int = _STT_FUNC) -> Function | None:
    """None for a symbol of another kind, and for one that another file defines."""
    _, kind, _, section, address, size = _SYMBOL.unpack(symbol)
    defined = kind & 15 == wanted and section and address
    return Function(address, size) if defined else None
