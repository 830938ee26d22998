"""`throughline inspect`: what is known of a Go binary, and what of it is traced."""

from __future__ import annotations

import argparse
import os
from typing import Any

from throughline.commands.output import print_json, table, text
from throughline.elf.elf import MalformedError
from throughline.probes import mappings
from throughline.runtimes.go.analysis import analyse
from throughline.runtimes.go.program import Program, UnsupportedError
from throughline.runtimes.go.releases import MODULES
from throughline.runtimes.go.wanted import FEATURES

FAILED = 1


def run(options: argparse.Namespace) -> int:
    """Prints the report of one file; 1 when it is refused."""
    found = inspect(options.binary)
    if options.json:
        print_json(found)
    else:
        print(text(lines(found)))
    return FAILED if found["refused"] else 0


def inspect(path: str) -> dict[str, Any]:
    """What is known of a file; "refused" is the reason when that is nothing. Raises OSError."""
    found: dict[str, Any] = {"file": path, "refused": ""}
    fd = mappings.open_file(path)
    try:
        program = analyse(fd)
    except UnsupportedError as error:
        return {**found, "refused": str(error)}
    except MalformedError as error:
        return {**found, "refused": f"the file contradicts itself: {error}"}
    finally:
        os.close(fd)
    if program is None:
        return {**found, "refused": "this is no Go program for x86-64"}
    return {**found, **_as_json(program)}


def _as_json(program: Program) -> dict[str, Any]:
    return {
        "go": program.version,
        "package": program.path,
        "modules": dict(program.modules),
        "build_id": program.build_id,
        "features": {
            name: {
                "state": "missing" if name in program.missing else "on",
                "reason": program.missing.get(name, ""),
            }
            for name in dict.fromkeys(feature.name for feature in FEATURES)
        },
        "sites": {
            name: {
                "offset": site.offset,
                "single_stepped": site.single_stepped,
                "restarts": site.restarts,
            }
            for name, site in sorted(program.sites.items())
        },
        "offsets": {
            name: {"bytes": offset, "source": program.sources[name]}
            for name, offset in sorted(program.offsets.items())
        },
        "types": dict(sorted(program.types.items())),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The report for people."""
    if found["refused"]:
        return [f"{found['file']}: {found['refused']}"]
    modules = [f"{name} {found['modules'][name]}" for name in MODULES if name in found["modules"]]
    features = [
        (name, feature["state"], feature["reason"] or "works")
        for name, feature in found["features"].items()
    ]
    sites = [
        (name, f"{site['offset']:#x}", "single-stepped" if site["single_stepped"] else "emulated")
        for name, site in found["sites"].items()
    ]
    offsets = [
        (name, str(offset["bytes"]), offset["source"]) for name, offset in found["offsets"].items()
    ]
    types = [(name, f"{address:#x}") for name, address in found["types"].items()]
    tables = (
        table(features, head=("Feature", "State", "Reason")),
        table(sites, head=("Function", "Offset", "Probe")),
        table(offsets, head=("Field", "Bytes", "From")),
        table(types, head=("Type", "Address")),
    )
    return [
        f"{found['file']}: a program of {found['go']}",
        f"  package   {found['package'] or 'unknown'}",
        f"  modules   {', '.join(modules) or _no_modules(found)}",
        f"  build id  {found['build_id']}",
        *(line for section in tables if section for line in ("", *section)),
    ]


def _no_modules(found: dict[str, Any]) -> str:
    return "none that matter" if found["modules"] else "unknown, it was not built from modules"
