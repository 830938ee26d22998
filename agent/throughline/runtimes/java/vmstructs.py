"""The fields of HotSpot's classes, as HotSpot itself exports them for its debugger.

libjvm.so has a table (`gHotSpotVMStructs`, src/hotspot/share/runtime/vmStructs.hpp) with the offset
of many fields, and the address of many static ones. It is filled when the library is loaded: so it
is read in the memory of a process that has loaded it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from throughline.elf.elf import Elf
from throughline.host.memory import Memory

_TABLE = "gHotSpotVMStructs"
_ENTRY = struct.Struct("<QQQi4xQQ")  # class, field, type, is it static, offset, address
_MAX_ENTRIES = 8192  # HotSpot 25 has 585
_PIECE = 128  # entries
# How an entry is laid out, as HotSpot says it: symbol -> what `_ENTRY` expects.
_SHAPE: Mapping[str, int] = {
    "gHotSpotVMStructEntryArrayStride": _ENTRY.size,
    "gHotSpotVMStructEntryTypeNameOffset": 0,
    "gHotSpotVMStructEntryFieldNameOffset": 8,
    "gHotSpotVMStructEntryIsStaticOffset": 24,
    "gHotSpotVMStructEntryOffsetOffset": 32,
    "gHotSpotVMStructEntryAddressOffset": 40,
}


class UnsupportedError(ValueError):
    """A HotSpot that keeps things in another way than those that are known here."""


class NotYetError(ValueError):
    """The JVM has not got so far: look again."""


@dataclass(frozen=True, slots=True)
class Exports:
    """Where a libjvm.so has its table: addresses, as linked."""

    table: int
    shape: Mapping[str, int]


def exports(elf: Elf) -> Exports | None:
    """None for a file that is no HotSpot."""
    found = elf.variables([_TABLE])
    if not found:
        return None
    shape = elf.variables(_SHAPE)
    return Exports(found[_TABLE], shape) if shape.keys() == _SHAPE.keys() else None


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a class of HotSpot."""

    offset: int  # in an object
    address: int  # of a static field, else 0


def read(memory: Memory, base: int, found: Exports, wanted: set[str]) -> dict[str, Field]:
    """The fields of the classes `wanted`: Class::_field -> Field.

    Raises OSError, UnsupportedError, NotYetError.
    """
    table = memory.word(base + found.table)
    shape = {name: memory.word(base + address) for name, address in found.shape.items()}
    if not table or not any(shape.values()):
        raise NotYetError("the library is being loaded")
    if shape != _SHAPE:
        raise UnsupportedError("its table of fields has another layout")
    classes: dict[int, str] = {}  # by the address of the name: linkers merge names
    fields: dict[str, Field] = {}
    for start in range(0, _MAX_ENTRIES, _PIECE):
        for entry in _entries(memory, table + start * _ENTRY.size):
            at, field_at, _, static, offset, address = entry
            if not at:
                return fields
            name = classes.get(at)
            if name is None:
                name = classes[at] = memory.name(at)
            if name in wanted and field_at:
                fields[f"{name}::{memory.name(field_at)}"] = Field(offset, address if static else 0)
    raise UnsupportedError("its table of fields has no end")


def _entries(memory: Memory, start: int) -> list[tuple[int, ...]]:
    """As many entries as can be read there: the table may be the last in its memory."""
    try:
        return list(_ENTRY.iter_unpack(memory.read(start, _PIECE * _ENTRY.size)))
    except OSError:
        return [
            _ENTRY.unpack(memory.read(start + n * _ENTRY.size, _ENTRY.size)) for n in range(_PIECE)
        ]
