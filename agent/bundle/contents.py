"""The files of a release (path to content) from the tree and from the wheels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from bundle import wheels

# Of a package's metadata only what is owed to its authors.
METADATA = re.compile(r"[^/]+\.dist-info/(METADATA|licenses/.+|LICENSE.*)")


def agent_package(sources: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(sources.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"lib/python/{path.relative_to(sources.parent)}", path.read_bytes()


def python_packages(paths: Iterable[Path]) -> dict[str, bytes]:
    """The agent's dependencies, from their wheels.

    Raises ValueError when two wheels disagree about a file that they share.
    """
    files: dict[str, bytes] = {}
    for wheel in paths:
        for name, content in wheels.members(wheel):
            if ".dist-info/" in name and not METADATA.fullmatch(name):
                continue
            if files.setdefault(f"lib/python/{name}", content) != content:
                raise ValueError(f"{wheel.name}: {name} differs between the wheels")
    return files


def needed_glibc(content: bytes) -> tuple[int, ...]:
    """The newest glibc symbol version that a shared object names, (0,) for none."""
    versions = re.findall(rb"\0GLIBC_([0-9.]+)(?=\0)", content)
    return max((tuple(map(int, version.split(b"."))) for version in versions), default=(0,))
