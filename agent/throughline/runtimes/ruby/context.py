"""Where a thread of Ruby keeps what it executes: the thread-local variable `ruby_current_ec`.

A thread-local variable is at an offset in the thread's copy of its module (the library). The number
of the module is in the process: the dynamic linker writes it where a relocation wants it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from throughline.elf.elf import Elf
from throughline.host.memory import Memory

VERSION = "ruby_version"  # a text that each Ruby exports
_VERSION_BYTES = 16
_VERSION_TEXT = re.compile(r"(\d)\.(\d)\.\d+")
_KNOWN = range(30, 35)  # Ruby 3.0 to 3.4: see bpf/runtimes/ruby_object.h
_CURRENT = "ruby_current_ec"
_RELOCATION_BYTES = 24  # an address, its type and symbol, and an addend
_DTPMOD64 = 16  # R_X86_64_DTPMOD64: the number of the module
_DT_RELA, _DT_RELASZ = 7, 8
_MAX_RELOCATIONS = 1 << 17
_MAX_MODULES = 1 << 10
_MAX_OFFSET = 1 << 16
_MAX_OFFSETS = 3
_WORD_BYTES = 8


@dataclass(frozen=True, slots=True)
class Context:
    """What bpf/runtimes/ruby_object.h has to know of a process."""

    version: int  # 31 for Ruby 3.1
    place: int  # 16 bits each: the module, and up to three offsets in it


def version(elf: Elf) -> str:
    """The version of Ruby in a file; "" where it has none. Raises OSError and MalformedError."""
    address = elf.variables((VERSION,)).get(VERSION)
    offset = elf.offset(address) if address else None
    if offset is None:
        return ""
    return elf.read(offset, _VERSION_BYTES).partition(b"\0")[0].decode("ascii", "replace")


def find(elf: Elf, memory: Memory, base: int) -> Context | None:
    """None for a Ruby that is not known, or is built in another way.

    `base`: what is added to addresses as linked. Raises OSError and MalformedError.
    """
    release = _VERSION_TEXT.match(version(elf))
    number = int(release[1]) * 10 + int(release[2]) if release else 0
    if number not in _KNOWN:
        return None
    variable = elf.thread_variable(_CURRENT)
    slots = _module_slots(elf, variable[0] if variable else 0)
    if variable is not None:
        offsets = [variable[1]]
    else:
        # Ruby does not export it since 3.3: it is one of those that its library has for itself
        offsets = [memory.word(base + slot + _WORD_BYTES) for slot in slots]
    if not slots or not offsets or len(offsets) > _MAX_OFFSETS or max(offsets) >= _MAX_OFFSET:
        return None
    place = memory.word(base + slots[0])  # the module
    if not 0 < place < _MAX_MODULES:
        return None
    for offset in (*offsets, *offsets[:1] * (_MAX_OFFSETS - len(offsets))):
        place = place << 16 | offset
    return Context(number, place)


def _module_slots(elf: Elf, index: int) -> list[int]:
    """The addresses, as linked, of words with the number of the module of a symbol.

    Behind each is the offset of a variable. `index`: 0 for variables without a symbol.
    """
    tags = elf.tags()
    count = tags.get(_DT_RELASZ, 0) // _RELOCATION_BYTES
    offset = elf.offset(tags[_DT_RELA]) if _DT_RELA in tags else None
    if offset is None or count > _MAX_RELOCATIONS:
        return []
    data = elf.read(offset, count * _RELOCATION_BYTES)
    wanted = struct.pack("<II", _DTPMOD64, index)
    found: list[int] = []
    at = data.find(wanted)
    while at >= 0 and len(found) <= _MAX_OFFSETS:
        if at % _RELOCATION_BYTES == 8:
            found.append(int.from_bytes(data[at - _WORD_BYTES : at], "little"))
        at = data.find(wanted, at + 1)
    return found
