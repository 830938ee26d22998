"""From an open file to what is known of the Go program in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

from throughline.golang import buildinfo, moduledata, pclntab, prologue
from throughline.golang.image import Image
from throughline.golang.moduledata import Module
from throughline.golang.pclntab import Table
from throughline.golang.program import Program, Site, UnsupportedError
from throughline.golang.rtypes import Struct, Types
from throughline.golang.wanted import EXTRA, FEATURES, NEWEST_MINOR, OLDEST_MINOR, Feature, split
from throughline.golang.wanted import Module as Tested
from throughline.kernel.elf import Elf, MalformedError

_MAX_TABLES = 4
_VERSION = re.compile(r"go1\.([0-9]+)(?:\.[0-9]+|rc[0-9]+|beta[0-9]+)?(?![0-9a-z])")
_MODULE_VERSION = re.compile(r"v([0-9]{1,6})\.([0-9]{1,6})\.")
# also "go1.22.10 X:nocoverageredesign" and a distributor's "go1.19.8-1"


@dataclass(slots=True)
class _Found:
    sites: dict[str, Site] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    twice: set[str] = field(default_factory=set)  # functions of which there are two


def is_go(fd: int) -> bool:
    """Is there a Go program in an open file? Takes a fraction of a millisecond."""
    try:
        elf = Elf.open(fd)
        return elf is not None and buildinfo.read(Image(elf)) is not None
    except UnsupportedError:
        return True
    except MalformedError:
        return False


def analyse(fd: int) -> Program | None:
    """The Go program in an open file; None when there is none.

    Raises UnsupportedError for one that cannot be read at all, MalformedError for a file that
    contradicts itself, OSError when it cannot be read. The descriptor stays open.
    """
    elf = Elf.open(fd)
    if elf is None:
        return None
    image = Image(elf)
    info = buildinfo.read(image)
    if info is None:
        return None
    minor = _minor(info.version)
    table, module = _locate(image, minor)
    found = _Found()
    _find_sites(image, table, module, found)
    _find_offsets(Types(image, module, minor), found)
    return Program(
        version=info.version,
        path=info.path,
        modules=info.modules,
        build_id=buildinfo.build_id(elf),
        sites=found.sites,
        offsets=found.offsets,
        types=found.types,
        sources=found.sources,
        missing=_missing(found, info.modules),
    )


def _minor(version: str) -> int:
    match = _VERSION.match(version)
    if match is None:
        raise UnsupportedError(f"{version[:60]!r} is not a release of Go")
    minor = int(match[1])
    if minor < OLDEST_MINOR:
        raise UnsupportedError(f"{version} is older than go1.{OLDEST_MINOR}")
    if minor > NEWEST_MINOR:
        raise UnsupportedError(f"{version} is newer than what was tested, go1.{NEWEST_MINOR}")
    return minor


def locate(image: Image, version: str) -> tuple[Table, Module]:
    """The function table of a program and what the linker says of it. Raises UnsupportedError."""
    return _locate(image, _minor(version))


def _locate(image: Image, minor: int) -> tuple[Table, Module]:
    named = buildinfo.sections(image.elf)
    section = named.get(".gopclntab") or named.get(".data.rel.ro.gopclntab")
    for table in islice(pclntab.tables(image, section), _MAX_TABLES):
        module = moduledata.find(image, table, minor)
        if module is not None:
            return table, module
    raise UnsupportedError("the program has no function table that could be read")


def _find_sites(image: Image, table: Table, module: Module, found: _Found) -> None:
    everything = (*FEATURES, EXTRA)
    names = {
        name
        for feature in everything
        for group in (*feature.functions, *feature.shared)
        for name in group
    }
    for name, ranges in table.lookup(image, [name.encode() for name in names]).items():
        if len(ranges) > 1:
            found.twice.add(name.decode())
            continue
        start, end = ranges[0]
        site = _site(image.elf, module.text + start, end - start)
        if site is not None:
            found.sites[name.decode()] = site


def _site(elf: Elf, address: int, size: int) -> Site | None:
    code = elf.code(address, min(size, prologue.CODE_BYTES)) if size > 0 else b""
    past, checks = prologue.cheap(code) or (0, False)
    offset = elf.offset(address + past, executable=True)
    if not code or offset is None:
        raise MalformedError(f"no code at {address:#x}")
    return Site(offset, address + past, dear=prologue.cheap(code) is None, restarts=checks)


def _find_offsets(types: Types, found: _Found) -> None:
    everything = (*FEATURES, EXTRA)
    fields = {group for feature in everything for group in feature.offsets}
    descriptors = {group for feature in everything for group in feature.types}
    names = {split(name)[0] for group in fields for name in group}
    names |= {name.removeprefix("*") for group in descriptors for name in group}
    structs = types.find(names)
    for group in fields:
        for struct, path in map(split, group):
            offset = types.offset(structs[struct], path) if struct in structs else None
            if offset is not None:
                found.offsets[group[0]] = offset
                found.sources[group[0]] = "types"
                break
    for group in descriptors:
        for name in group:
            address = _descriptor(structs, name)
            if address is not None:
                found.types[group[0]] = address
                break


def _descriptor(structs: Mapping[str, Struct], name: str) -> int | None:
    struct = structs.get(name.removeprefix("*"))
    if struct is None:
        return None
    return struct.pointer if name.startswith("*") else struct.address


def _missing(found: _Found, modules: Mapping[str, str]) -> dict[str, str]:
    missing = {}
    for feature in FEATURES:
        reason = _lacks(feature, found, modules)
        if reason:
            missing[feature.name] = reason
    return missing


def _lacks(feature: Feature, found: _Found, modules: Mapping[str, str]) -> str:
    """The first thing that a feature needs and the program does not have, else ""."""
    lost = [group for group in feature.functions if not found.sites.keys() & group]
    if len(lost) == len(feature.functions) and feature.package:
        return f"the program does not use {feature.package}"
    for name, tested in feature.modules.items():
        if reason := _untested(name, modules.get(name, ""), tested):
            return reason
    lost += [group for group in feature.shared if not found.sites.keys() & group]
    for group in lost:
        twice = found.twice.intersection(group)
        return f"there are two functions {twice.pop()}" if twice else f"no function {group[0]}"
    for group in feature.offsets:
        if group[0] not in found.offsets:
            return f"no offset of {group[0]}"
    for group in feature.types:
        if group[0] not in found.types:
            return f"no type {group[0]}"
    return ""


def _untested(name: str, version: str, tested: Tested) -> str:
    """Why a module's version is not to be believed, else "".

    Programs that were not built from modules, as those of Debian, do not tell versions; then the
    functions and fields that are there have to do.
    """
    if version.startswith("=>"):
        return f"{name} is replaced by {version[3:]}"
    match = _MODULE_VERSION.match(version)
    if match is None:
        return ""
    release = int(match[1]), int(match[2])
    if release < tested.oldest:
        return f"{name} {version} is older than v{tested.oldest[0]}.{tested.oldest[1]}"
    if release > tested.newest:
        newest = f"v{tested.newest[0]}.{tested.newest[1]}"
        return f"{name} {version} is newer than what was tested, {newest}"
    return ""
