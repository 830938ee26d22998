"""The analysis: from an open file to a description of the Go program in it."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from itertools import islice

from throughline.elf import sections
from throughline.elf.elf import Elf, MalformedError
from throughline.probes import arch
from throughline.probes.arch.place import CODE_BYTES
from throughline.runtimes.go import buildinfo, coverage, inlining, layouts, moduledata, pclntab
from throughline.runtimes.go.image import Image
from throughline.runtimes.go.moduledata import Module
from throughline.runtimes.go.pclntab import Entry, Table
from throughline.runtimes.go.program import (
    FunctionSite,
    Program,
    UnsupportedError,
    experiments,
)
from throughline.runtimes.go.releases import HARMLESS, NEWEST_MINOR, OLDEST_MINOR
from throughline.runtimes.go.wanted import EXTRA, FEATURES

_MAX_TABLES = 4
# Also matches "go1.22.10 X:nocoverageredesign" and a distributor's "go1.19.8-1".
_VERSION = re.compile(r"go1\.([0-9]{1,4})(?:\.[0-9]+|rc[0-9]+|beta[0-9]+)?(?![0-9a-z])")


@dataclass(slots=True)
class _Found:
    sites: dict[str, FunctionSite] = field(default_factory=dict)
    # functions that a probe may not see -> why
    unsure: dict[str, str] = field(default_factory=dict)


def is_go(fd: int) -> bool:
    """Is a Go program in an open file? Takes a fraction of a millisecond."""
    try:
        elf = arch.open_elf(fd)
        return elf is not None and buildinfo.read(Image(elf)) is not None
    except UnsupportedError:
        return True
    except MalformedError:
        return False


def digest(fd: int, stop: threading.Event | None = None) -> str:
    """A hash of the content of an open file. Raises as `analyse` does."""
    elf = arch.open_elf(fd)
    if elf is None:
        raise MalformedError("no program any more")
    return buildinfo.digest(elf, stop)


def analyse(fd: int, stop: threading.Event | None = None) -> Program | None:
    """The Go program in an open file; None where there is none.

    Raises UnsupportedError for a program that is not supported, and once `stop` is set,
    MalformedError for a file that contradicts itself, OSError for one that cannot be read. The
    descriptor stays open.
    """
    elf = arch.open_elf(fd)
    if elf is None:
        return None
    image = Image(elf, stop)
    info = buildinfo.read(image)
    if info is None:
        return None
    minor = _minor(info.version)
    table, module = _locate(image, minor)
    found = _Found()
    _find_sites(image, table, module, found, profiled=info.profiled)
    layout = layouts.find(image, module, info, minor, found.sites)
    return Program(
        version=info.version,
        path=info.path,
        modules=info.modules,
        build_id=buildinfo.build_id(elf, stop),
        sites=found.sites,
        offsets=layout.offsets,
        types=layout.types,
        sources=layout.sources,
        missing=coverage.missing(
            found.sites,
            found.unsure,
            layout.offsets,
            layout.types,
            info.modules,
            registers=arch.here().GO_REGISTERS,
        ),
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
    for experiment in experiments(version):
        if experiment.removeprefix("no") not in HARMLESS:
            raise UnsupportedError(f"built with GOEXPERIMENT={experiment}, which is not known")
    return minor


def locate(image: Image, version: str) -> tuple[Table, Module]:
    """The function table of a program and the linker's description. Raises UnsupportedError."""
    return _locate(image, _minor(version))


def _locate(image: Image, minor: int) -> tuple[Table, Module]:
    named = sections.named(image.elf)
    section = named.get(".gopclntab") or named.get(".data.rel.ro.gopclntab")
    for table in islice(pclntab.tables(image, section), _MAX_TABLES):
        module = moduledata.find(image, table, minor)
        if module is not None:
            return table, module
    raise UnsupportedError("the program has no function table that could be read")


def _find_sites(
    image: Image, table: Table, module: Module, found: _Found, *, profiled: bool
) -> None:
    everything = (*FEATURES, EXTRA)
    names = {
        name
        for feature in everything
        for group in (*feature.functions, *feature.shared)
        for name in group
    }
    functions: dict[str, Entry] = {}
    for each, entries in table.lookup(image, [name.encode() for name in names]).items():
        name = each.decode()
        functions[name] = entries[0]
        if len(entries) > 1:
            found.unsure[name] = f"there are two functions {name}"
    if profiled:
        for name in inlining.inlined(image, module, functions):
            found.unsure[name] = f"a profile has {name} inlined, where no probe sees it"
    for name, entry in functions.items():
        if name not in found.unsure:
            found.sites[name] = _site(image.elf, module.text + entry.start, entry.end - entry.start)


def _site(elf: Elf, address: int, size: int) -> FunctionSite:
    code = elf.code(address, min(size, CODE_BYTES)) if size > 0 else b""
    place = arch.here().go_place(code)
    offset = elf.offset(address + place.past, executable=True)
    if not code or offset is None:
        raise MalformedError(f"no code at {address:#x}")
    return FunctionSite(offset, address + place.past, place.single_stepped, place.restarts)
