"""Rust: tokio's threads, and threads of the standard library."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from tests.parents import pinned
from tests.parents.app import App, Behaviour, MissingError, Place, Process

_FOLDER = Path(__file__).parent
_PROGRAMS = ("axum", "two_queues")
_PINNED = "Cargo.lock.pinned"  # a Cargo.lock that leaves open where the registry is
_SOURCES = ("Cargo.toml", _PINNED, *(f"src/{name}.rs" for name in _PROGRAMS))


@cache
def _built() -> Path:
    return pinned.directory("rust", [_FOLDER / name for name in _SOURCES], _build)


def _build(folder: Path) -> None:
    tree = folder / "tree"
    shutil.copytree(_FOLDER, tree)
    pinned.run(["cargo", "generate-lockfile"], cwd=tree)
    lock = tree / "Cargo.lock"
    registry = re.search(r'^source = ".+"$', lock.read_text(encoding="utf-8"), re.MULTILINE)
    if not registry:
        raise MissingError("cargo generate-lockfile names no registry")
    text = (tree / _PINNED).read_text(encoding="utf-8")
    lock.write_text(text.replace('source = "registry"', registry[0]), encoding="utf-8")
    pinned.run(["cargo", "build", "--release", "--locked"], cwd=tree)
    for name in _PROGRAMS:
        shutil.copy2(tree / "target/release" / name, folder / name)
    shutil.rmtree(tree)


def _install() -> None:
    _built()


def _program(name: str) -> Callable[[Place], Sequence[Process]]:
    def start(_: Place) -> Sequence[Process]:
        return [Process([str(_built() / name)])]

    return start


APPS = (
    App(
        name="axum",
        runtime="Rust",
        title="axum, reqwest",
        start=_program("axum"),
        behaviours=tuple(Behaviour),
        install=_install,
    ),
    App(
        name="two-queues",
        runtime="Rust",
        title="threads that do each other's work",
        start=_program("two_queues"),
        behaviours=(Behaviour.AT_ONCE, Behaviour.SLEEP, Behaviour.BODY),
        install=_install,
    ),
)
