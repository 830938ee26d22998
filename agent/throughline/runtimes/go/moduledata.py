"""The linker's description of a Go program: where its text and its types are.

runtime.moduledata (runtime/symtab.go of Go 1.18 to 1.27) begins with a pointer to the function
table. It is found by that pointer. Releases differ in the fields behind those that are read here,
apart from `covctrs` (1.20) and `typedesclen`, `itaboffset` and `itabsize` (1.27).
"""

from __future__ import annotations

from dataclasses import dataclass

from throughline.elf.elf import MalformedError
from throughline.runtimes.go.image import Image
from throughline.runtimes.go.pclntab import Table

_WORDS = 44
_NAMES, _FTAB, _FTAB_SIZE = 1, 16, 17
_TEXT, _TEXT_END = 22, 23
_TYPES_BEFORE_1_20, _TYPES = 35, 37
_MAX_CANDIDATES = 1 << 10
_MAX_TYPES_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Module:
    """Addresses as linked."""

    text: int  # the function table counts from here
    text_end: int
    types: int  # the offsets of the type data count from here
    types_end: int
    functions_data: int


def find(image: Image, table: Table, minor: int) -> Module | None:
    """The module of a function table, in a program of Go 1.`minor`."""
    for number, address in enumerate(image.find_pointers(table.address)):
        if number == _MAX_CANDIDATES:
            raise MalformedError("the function table is pointed to without end")
        try:
            words = image.words(address, _WORDS)
        except MalformedError:  # at the end of a segment
            continue
        if _describes(words, table):
            return _module(image, words, minor)
    return None


def _describes(words: list[int], table: Table) -> bool:
    return (
        words[_NAMES] == table.names
        and words[_FTAB] == table.functions
        and words[_FTAB_SIZE] == table.count + 1
    )


def _module(image: Image, words: list[int], minor: int) -> Module:
    text, text_end = words[_TEXT], words[_TEXT_END]
    first = _TYPES_BEFORE_1_20 if minor < 20 else _TYPES
    types, types_end = words[first], words[first + (2 if minor >= 27 else 1)]
    if not image.elf.code(text, 1) or not text < text_end:
        raise MalformedError(f"text from {text:#x} to {text_end:#x}")
    if not 0 < types < types_end or types_end - types > _MAX_TYPES_BYTES:
        raise MalformedError(f"types from {types:#x} to {types_end:#x}")
    behind = first + (6 if minor >= 27 else 3)
    return Module(text, text_end, types, types_end, words[behind])
