"""Go: goroutines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.parents import pinned
from tests.parents.app import App, Behaviour, Place, Process

_FOLDER = Path(__file__).parent
_SOURCES = [_FOLDER / name for name in ("go.mod", "go.sum", "main.go")]


@cache
def _program() -> Path:
    return pinned.directory("go", _SOURCES, _build) / "parents"


def _build(folder: Path) -> None:
    pinned.run(["go", "build", "-o", folder / "parents", "."], cwd=_FOLDER)


def _install() -> None:
    _program()


def _start(_: Place) -> Sequence[Process]:
    return [Process([str(_program())])]


APPS = (
    App(
        name="go-http",
        runtime="Go",
        title="net/http",
        start=_start,
        behaviours=tuple(Behaviour),
        install=_install,
        follows="go",
    ),
)
