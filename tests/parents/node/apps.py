"""Node.js: one event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from tests.parents import pinned
from tests.parents.app import App, Behaviour, Place, Process

_FOLDER = Path(__file__).parent
_PINNED = (_FOLDER / "package.json", _FOLDER / "package-lock.json")
_EVERY = tuple(Behaviour)
_NO_DATABASE = tuple(one for one in Behaviour if one is not Behaviour.DATABASE)


@cache
def _packages() -> Path:
    return pinned.directory("node", _PINNED, _build) / "node_modules"


def _build(folder: Path) -> None:
    for path in _PINNED:
        (folder / path.name).write_bytes(path.read_bytes())
    pinned.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder)


def _install() -> None:
    _packages()


def _node(program: str) -> Callable[[Place], Sequence[Process]]:
    def start(place: Place) -> Sequence[Process]:
        variables = {"NODE_PATH": str(_packages()), "NODE_ENV": "production"}
        return [Process(["node", str(_FOLDER / program)], environment=variables)]

    return start


def _app(name: str, title: str, program: str, behaviours: Sequence[Behaviour]) -> App:
    return App(
        name=name,
        runtime="Node.js",
        title=title,
        start=_node(program),
        behaviours=behaviours,
        install=_install,
    )


APPS = (
    _app("node-http", "http, `http.Agent`", "http.js", _NO_DATABASE),
    _app("node-fetch", "http, `fetch`", "fetch.js", _NO_DATABASE),
    _app("express", "Express, axios", "express.js", _EVERY),
)
