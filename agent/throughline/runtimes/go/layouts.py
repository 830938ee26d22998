"""Where the fields of structs are, from the best source that has them.

1. The type data of the binary: what the runtime itself believes.
2. DWARF, where the binary has not been stripped, and only for what is still missing.
3. The table of layouts.json, for the very versions that it was generated from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from throughline.runtimes.go import coverage as features
from throughline.runtimes.go import table
from throughline.runtimes.go.buildinfo import BuildInfo
from throughline.runtimes.go.dwarf import Dwarf
from throughline.runtimes.go.image import Image
from throughline.runtimes.go.moduledata import Module
from throughline.runtimes.go.rtypes import Struct, Types
from throughline.runtimes.go.wanted import EXTRA, FEATURES, Feature, Group, split

_END = 1 << 15  # no struct is as large: what is said to lie behind counts as missing


@dataclass(slots=True)
class Layout:
    """What was found, each under the first name of its group."""

    offsets: dict[str, int] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)  # addresses of descriptors

    def add(self, name: str, offset: int, source: str) -> None:
        self.offsets[name] = offset
        self.sources[name] = source


def find(
    image: Image, module: Module, info: BuildInfo, minor: int, functions: Collection[str]
) -> Layout:
    """The layouts of a program that has these functions."""
    layout = Layout()
    used = [feature for feature in FEATURES if features.is_used(feature, functions)]
    _from_types(Types(image, module, minor), (*used, EXTRA), layout)
    lost = tuple(_lost(used, layout))
    if lost:
        _from_dwarf(Dwarf(image), lost, layout)
        for group in _lost(used, layout):
            offset = table.offset(group[0], info)
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
