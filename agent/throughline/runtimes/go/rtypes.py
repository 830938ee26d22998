"""Struct layouts from the type data that every Go program has for its own runtime.

The descriptor of a type (internal/abi.Type, before Go 1.21 runtime._type) has the place of its name
as an offset from the start of the types. So the names are searched for first, and then the words
that hold such an offset, at its place in a descriptor. This needs no list of types: `typelinks` has
only some of them, and Go 1.27 has no such list. The package of a named type is in an
abi.UncommonType behind the descriptor. The layout is the same from Go 1.18 to 1.27, except that Go
1.18 keeps `embedded` in the lowest bit of a field's offset.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from throughline.elf import leb128
from throughline.elf.elf import MalformedError
from throughline.runtimes.go.image import Image
from throughline.runtimes.go.moduledata import Module

_TFLAG, _KIND, _STRING, _EXTRA = 20, 23, 40, 48
_UNCOMMON = 1  # flags of a type
_KIND_MASK, _POINTER, _STRUCT = 0x1F, 22, 25
_POINTER_BYTES, _STRUCT_BYTES = 56, 80  # behind them the package
_HARMLESS_NAME_FLAGS = 0x0B  # exported, tagged, embedded
_MAX_NAME_BYTES = 1 << 10
_MAX_FIELDS = 1 << 10
_MAX_DEPTH = 8  # of structs within a struct
_MAX_CANDIDATES = 1 << 12
_OVERLAP = 512


@dataclass(frozen=True, slots=True)
class Struct:
    """A named struct type."""

    address: int  # of its descriptor
    pointer: int | None  # of the descriptor of the pointer to it


@dataclass(frozen=True, slots=True)
class _Field:
    offset: int
    type: int  # the address of its descriptor


class Types:
    """The types of a program of Go 1.`minor`."""

    def __init__(self, image: Image, module: Module, minor: int) -> None:
        self._image = image
        self._module = module
        self._shift = 1 if minor < 19 else 0
        self._fields: dict[int, dict[str, _Field]] = {}

    def find(self, wanted: Iterable[str]) -> dict[str, Struct]:
        """Structs by package path and name ("net/http.Request"), where that is unique."""
        by_string: dict[bytes, list[str]] = {}
        for name in wanted:
            by_string.setdefault(b"*" + name.rpartition("/")[2].encode(), []).append(name)
        names = self._names(by_string)
        structs: dict[str, list[int]] = {}
        pointers: dict[int, int] = {}
        for address, kind, string in self._descriptors(names):
            if kind == _POINTER:
                pointers[self._image.pointer(address + _EXTRA)] = address
            elif kind == _STRUCT:
                package = self._package(address)
                for name in by_string[names[string]]:
                    if name.rpartition(".")[0] == package:
                        structs.setdefault(name, []).append(address)
        return {
            name: Struct(found[0], pointers.get(found[0]))
            for name, found in structs.items()
            if len(found) == 1
        }

    def offset(self, owner: Struct, path: str) -> int | None:
        """Where a field is, None when it is not there.

        "pfd.Sysfd" is a field of a struct within the struct, "*Stream" a field that is a pointer.
        """
        offset, address = 0, owner.address
        for name in path.split(".")[:_MAX_DEPTH]:
            field = self._fields_of(address).get(name.removeprefix("*"))
            if field is None or (name[0] == "*" and self._kind(field.type) != _POINTER):
                return None
            offset += field.offset
            address = field.type
        return offset

    def _names(self, wanted: Mapping[bytes, object]) -> dict[int, bytes]:
        """Where the names are, from the start of the types: a flag, the length, the bytes."""
        found: dict[int, bytes] = {}
        # A pattern that begins with a literal is searched for ten times as fast.
        pattern = re.compile(rb"\*(?:%s)" % b"|".join(re.escape(name[1:]) for name in wanted))
        start, size = self._module.types, self._module.types_end - self._module.types
        for at, piece in self._image.pieces(start, size, _OVERLAP):
            for match in pattern.finditer(piece):
                place = match.start() - 2
                if place < 0 or piece[place] & ~_HARMLESS_NAME_FLAGS:
                    continue
                name = piece[place + 2 : place + 2 + piece[place + 1]]
                if name in wanted:
                    found[at + place - start] = name
            if len(found) > _MAX_CANDIDATES:
                raise MalformedError("the names of types repeat without end")
        return found

    def _descriptors(self, names: Mapping[int, object]) -> Iterator[tuple[int, int, int]]:
        """Address, kind and name of the named types, and pointers, that have one of these names."""
        wanted = frozenset(names)
        start, end = self._module.types, self._module.types_end
        start += -start % 8  # descriptors are aligned to pointers
        count = 0
        for at, piece in self._image.pieces(start, end - start, 0):
            words = memoryview(piece)[: len(piece) & ~7].cast("I")[::2]
            for name in wanted.intersection(words):
                self._image.check_time()
                for place in _aligned(piece, struct.pack("<I", name)):
                    count += 1
                    if count > _MAX_CANDIDATES:
                        raise MalformedError("the types have no end")
                    kind = self._named(at + place - _STRING)
                    if kind is not None:
                        yield at + place - _STRING, kind, name

    def _named(self, address: int) -> int | None:
        """The kind of a type that is a pointer or has a name."""
        if address < self._module.types:
            return None
        head = self._image.exactly(address, _STRING)
        kind = head[_KIND] & _KIND_MASK
        return kind if kind == _POINTER or head[_TFLAG] & _UNCOMMON else None

    def _package(self, address: int) -> str:
        """The path of the package of a named struct type; "" where the descriptor is none."""
        try:
            offset = int.from_bytes(self._image.exactly(address + _STRUCT_BYTES, 4), "little")
            return self._name(self._module.types + offset)
        except MalformedError:
            return ""

    def _kind(self, address: int) -> int:
        return self._image.exactly(address, _STRING)[_KIND] & _KIND_MASK

    def _fields_of(self, address: int) -> dict[str, _Field]:
        fields = self._fields.get(address)
        if fields is None:
            fields = self._fields[address] = self._read_fields(address)
        return fields

    def _read_fields(self, address: int) -> dict[str, _Field]:
        head = self._image.exactly(address, _STRING)
        if head[_KIND] & _KIND_MASK != _STRUCT:
            return {}
        first, count = self._image.words(address + _EXTRA + 8, 2)
        if count > _MAX_FIELDS:
            raise MalformedError(f"a struct of {count} fields")
        size = int.from_bytes(head[:8], "little")
        words = self._image.words(first, count * 3) if count else []
        found: dict[str, _Field] = {}
        for name, kind, offset in zip(words[::3], words[1::3], words[2::3], strict=True):
            if offset >> self._shift > size:
                raise MalformedError("a field lies outside of its struct")
            found[self._name(name)] = _Field(offset >> self._shift, kind)
        return found

    def _name(self, address: int) -> str:
        data = self._image.read(address, 66)
        size, used = leb128.unsigned(data[1:])
        if size > _MAX_NAME_BYTES:
            raise MalformedError(f"a name of {size} bytes")
        if 1 + used + size > len(data):
            data = self._image.exactly(address, 1 + used + size)
        return data[1 + used : 1 + used + size].decode("utf-8", "replace")


def _aligned(data: bytes, wanted: bytes) -> Iterator[int]:
    at = data.find(wanted)
    while at >= 0:
        if at % 8 == 0:
            yield at
        at = data.find(wanted, at + 1)
