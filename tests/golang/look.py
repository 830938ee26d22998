"""What the agent's analysis says of a program."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from throughline.runtimes.go import Program, analyse


def look(path: Path) -> Program:
    """Analyses a Go program, each time anew."""
    with path.open("rb") as file:
        program = analyse(file.fileno())
    assert program is not None
    return program


def lacks(program: Program, features: Collection[str]) -> dict[str, str]:
    """Which of these features it does not have, and why."""
    return {name: reason for name, reason in program.missing.items() if name in features}
