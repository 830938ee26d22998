"""Functions that the compiler has inlined into others, where no probe sees them.

Without a profile the compiler decides the same in all programs of a release, and it never inlines
the functions that the agent probes. With a profile it inlines even large functions, at the calls
that are made most often. The build settings say whether a program was built with a profile. The
inline trees (runtime.inlinedCall: kind, name, place of the call, line of the function) say what was
inlined. They lie among the other data of functions, from moduledata.gofunc on, and nothing says
where they end. So a record counts when its name and line are those of the wanted function.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from throughline.runtimes.go.image import Image
from throughline.runtimes.go.moduledata import Module
from throughline.runtimes.go.pclntab import Entry

_RECORD = struct.Struct("<B3siii")
_MAX_KIND = 64
_MAX_BYTES = 1 << 28


def inlined(image: Image, module: Module, functions: Mapping[str, Entry]) -> set[str]:
    """The functions that are inlined anywhere, in a program of Go 1.20 or newer."""
    names = {entry.name_at: name for name, entry in functions.items()}
    wanted = frozenset(names)
    found: set[str] = set()
    for segment in image.elf.segments:
        if not segment.holds(module.functions_data):
            continue
        size = min(segment.address + segment.size - module.functions_data, _MAX_BYTES)
        start = module.functions_data & ~3
        for _, piece in image.pieces(start, size, _RECORD.size):
            for name_at in wanted.intersection(memoryview(piece)[: len(piece) & ~3].cast("I")):
                image.check_time()
                if _has_record(piece, name_at, functions[names[name_at]].line):
                    found.add(names[name_at])
    return found


def _has_record(piece: bytes, name_at: int, line: int) -> bool:
    wanted = struct.pack("<I", name_at)
    at = piece.find(wanted)
    while at >= 0:
        if at % 4 == 0 and 4 <= at <= len(piece) - 12:
            kind, pad, _, place, first_line = _RECORD.unpack_from(piece, at - 4)
            if kind < _MAX_KIND and pad == bytes(3) and place >= 0 and first_line == line:
                return True
        at = piece.find(wanted, at + 1)
    return False
