"""The offsets of the wanted fields, each from the best source that has it.

1. The type data of the program, which Go's own runtime uses.
2. DWARF, where the program is not stripped, for fields that are still missing.
3. layouts.json, for the very versions that it was generated from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from throughline.elf.dwarf import Dwarf
from throughline.runtimes.go import known_layouts
from throughline.runtimes.go.buildinfo import BuildInfo
from throughline.runtimes.go.coverage import is_used
from throughline.runtimes.go.image import Image
from throughline.runtimes.go.moduledata import Module
from throughline.runtimes.go.rtypes import Struct, Types
from throughline.runtimes.go.wanted import EXTRA, FEATURES, Feature, Group, split

_END = 1 << 15  # no struct is as large: a field at a larger offset counts as missing
_GO_STRUCT = {0x2900: 25}  # DW_AT_go_kind: reflect.Struct


@dataclass(slots=True)
class Layout:
    """The fields and types that were found, each under the first name of its group."""

    offsets: dict[str, int] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)  # name -> address of the descriptor

    def add(self, name: str, offset: int, source: str) -> None:
        self.offsets[name] = offset
        self.sources[name] = source


def find(
    image: Image, module: Module, info: BuildInfo, minor: int, functions: Collection[str]
) -> Layout:
    """The layout of a program that has these functions."""
    layout = Layout()
    used = [feature for feature in FEATURES if is_used(feature, functions)]
    _from_types(Types(image, module, minor), (*used, EXTRA), layout)
    lost = tuple(_lost(used, layout))
    if lost:
        dwarf = Dwarf(image.elf, attributes=_GO_STRUCT, check=image.check_time)
        _from_dwarf(dwarf, lost, layout)
        for group in _lost(used, layout):
            offset = known_layouts.offset(group[0], info)
            if offset is not None:
                layout.add(group[0], offset, "table")
    return layout


def _lost(used: Iterable[Feature], layout: Layout) -> Iterator[Group]:
    for feature in used:
        yield from (group for group in feature.offsets if group[0] not in layout.offsets)


def _from_types(types: Types, wanted: Collection[Feature], layout: Layout) -> None:
    fields = {group for feature in wanted for group in feature.offsets}
    descriptors = {group for feature in wanted for group in feature.types}
    names = {split(name)[0] for group in fields for name in group}
    names |= {name.removeprefix("*") for group in descriptors for name in group}
    structs = types.find(names)
    for group in fields:
        for owner, path in map(split, group):
            offset = types.offset(structs[owner], path) if owner in structs else None
            if offset is not None and offset < _END:
                layout.add(group[0], offset, "types")
                break
    for group in descriptors:
        for name in group:
            address = _descriptor(structs, name)
            if address is not None:
                layout.types[group[0]] = address
                break


def _descriptor(structs: Mapping[str, Struct], name: str) -> int | None:
    struct = structs.get(name.removeprefix("*"))
    if struct is None:
        return None
    return struct.pointer if name.startswith("*") else struct.address


def _from_dwarf(dwarf: Dwarf, lost: Collection[Group], layout: Layout) -> None:
    found = dwarf.offsets({split(name) for group in lost for name in group})
    for group in lost:
        for name in group:
            if found.get(split(name), _END) < _END:
                layout.add(group[0], found[split(name)], "dwarf")
                break
