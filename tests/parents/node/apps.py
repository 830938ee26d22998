"""Node.js: one event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from tests.parents import pinned
from tests.parents.app import App, Behaviour, Place, Process

_FOLDER = Path(__file__).parent
_PINNED = ("package.json", "package-lock.json")
_NEST = _FOLDER / "nest"
_NEST_SOURCES = (*_PINNED, "tsconfig.json", "main.ts")
_NPM_CI = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
_EVERY = tuple(Behaviour)
_NO_DATABASE = tuple(one for one in Behaviour if one is not Behaviour.DATABASE)


@cache
def _packages() -> Path:
    def build(folder: Path) -> None:
        _copy(_PINNED, _FOLDER, folder)
        pinned.run(_NPM_CI, cwd=folder)

    made = pinned.directory("node", [_FOLDER / name for name in _PINNED], build)
    return made / "node_modules"


@cache
def _nest() -> Path:
    """NestJS is written in TypeScript: the compiler is not kept."""

    def build(folder: Path) -> None:
        _copy(_NEST_SOURCES, _NEST, folder)
        pinned.run(_NPM_CI, cwd=folder)
        pinned.run(["npm", "run", "build"], cwd=folder)
        pinned.run(["npm", "prune", "--omit=dev", "--no-audit", "--no-fund"], cwd=folder)

    made = pinned.directory("nest", [_NEST / name for name in _NEST_SOURCES], build)
    return made / "dist/main.js"


def _copy(names: Sequence[str], source: Path, target: Path) -> None:
    for name in names:
        (target / name).write_bytes((source / name).read_bytes())


def _install() -> None:
    _packages()


def _install_nest() -> None:
    _nest()


def _node(program: str) -> Callable[[Place], Sequence[Process]]:
    def start(place: Place) -> Sequence[Process]:
        variables = {"NODE_PATH": str(_packages()), "NODE_ENV": "production"}
        return [Process(["node", str(_FOLDER / program)], environment=variables)]

    return start


def _start_nest(_: Place) -> Sequence[Process]:
    return [Process(["node", str(_nest())], environment={"NODE_ENV": "production"})]


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
    App(
        name="nestjs",
        runtime="Node.js",
        title="NestJS, `HttpService`",
        start=_start_nest,
        behaviours=_EVERY,
        install=_install_nest,
    ),
)
