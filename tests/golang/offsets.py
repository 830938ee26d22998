"""Generates agent/throughline/runtimes/go/layouts.json from programs that tell their layouts.

    python -m tests.golang.offsets PROGRAM…

Each program adds what its type data says, under the versions of Go and of the modules that it was
built from. Programs that contradict each other are an error: a layout that depends on more than the
version has no place in the table. What is in the table and in none of the programs stays.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from throughline.runtimes.go import Program, analyse, table

Table = dict[str, dict[str, dict[str, int]]]


def add(found: Table, program: Program) -> None:
    """Adds what is known of a program. Raises ValueError where the table knows it otherwise."""
    asked = table.versions(program)
    for name, offset in program.offsets.items():
        module = table.module(name)
        version = asked.get(module, "")
        if not version or version.startswith(("=>", "(")) or program.sources[name] != "types":
            continue
        known = found.setdefault(module, {}).setdefault(version, {})
        if known.setdefault(name, offset) != offset:
            raise ValueError(f"{name} of {module} {version} is at {known[name]} and at {offset}")


def generate(programs: Iterable[Path], before: Table) -> Table:
    found = {module: {v: dict(names) for v, names in of.items()} for module, of in before.items()}
    for path in programs:
        fd = os.open(path, os.O_RDONLY)
        try:
            program = analyse(fd)
        finally:
            os.close(fd)
        if program is None:
            raise ValueError(f"{path} is no Go program")
        add(found, program)
    return found


def write(found: Table, path: Path) -> None:
    """One line for each version, so that a change shows what it changes."""
    modules = []
    for module, versions in sorted(found.items()):
        lines = [
            f"    {json.dumps(version)}: {json.dumps(dict(sorted(names.items())))}"
            for version, names in sorted(versions.items(), key=lambda item: _order(item[0]))
        ]
        modules.append(f"  {json.dumps(module)}: {{\n" + ",\n".join(lines) + "\n  }")
    path.write_text("{\n" + ",\n".join(modules) + "\n}\n")


def _order(version: str) -> list[int]:
    return [int(part) for part in version.lstrip("gov").split("-")[0].split(".")]


if __name__ == "__main__":
    existing = json.loads(table.PATH.read_text()) if table.PATH.exists() else {}
    write(generate(map(Path, sys.argv[1:]), existing), table.PATH)
