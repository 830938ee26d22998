"""What `throughline inspect` says of a binary."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from throughline.elf.elf import MalformedError
from throughline.probes import mappings
from throughline.runtimes.go.analysis import analyse
from throughline.runtimes.go.program import Program, UnsupportedError
from throughline.runtimes.go.wanted import FEATURES, MODULES
from throughline.text import printable


def inspect(path: str) -> dict[str, Any]:
    """What is known of a file; "refused" says why it is nothing. Raises OSError as opening does."""
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
            name: {"offset": site.offset, "dear": site.dear, "restarts": site.restarts}
            for name, site in sorted(program.sites.items())
        },
        "offsets": {
            name: {"bytes": offset, "source": program.sources[name]}
            for name, offset in sorted(program.offsets.items())
        },
        "types": dict(sorted(program.types.items())),
    }


def format_text(found: dict[str, Any]) -> str:
    """The report for people."""
    if found["refused"]:
        return printable(f"{found['file']}: {found['refused']}")
    modules = [f"{name} {found['modules'][name]}" for name in MODULES if name in found["modules"]]
    features = [
        (name, feature["state"], feature["reason"] or "works")
        for name, feature in found["features"].items()
    ]
    sites = [
        (name, f"{site['offset']:#x}", "dear" if site["dear"] else "cheap")
        for name, site in found["sites"].items()
    ]
    offsets = [
        (name, str(offset["bytes"]), offset["source"]) for name, offset in found["offsets"].items()
    ]
    types = [(name, f"{address:#x}") for name, address in found["types"].items()]
    return "\n".join(
        printable(line)
        for line in [
            f"{found['file']}: a program of {found['go']}",
            f"  package   {found['package'] or 'unknown'}",
            f"  modules   {', '.join(modules) or _no_modules(found)}",
            f"  build id  {found['build_id']}",
            *_table(("Feature", "State", "Reason"), features),
            *_table(("Function", "Offset", "Probe"), sites),
            *_table(("Field", "Bytes", "From"), offsets),
            *_table(("Type", "Address"), types),
        ]
    )


def _no_modules(found: dict[str, Any]) -> str:
    return "none that matter" if found["modules"] else "unknown, it was not built from modules"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, *rows]
    if len(lines) == 1:
        return []
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return [
        "",
        *(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ),
    ]
