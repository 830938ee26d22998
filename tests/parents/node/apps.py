"""Node.js: one event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from tests.fixtures import postgres
from tests.fixtures.certificate import make_certificate
from tests.fixtures.paths import CHECKOUT
from tests.parents import debian, pinned
from tests.parents.app import SERVICE, App, Behaviour, Place, Process

_FOLDER = Path(__file__).parent
PRELOAD = CHECKOUT / "agent/bundle/release/share/node/context.cjs"
_PINNED = ("package.json", "package-lock.json")
_NEST = _FOLDER / "nest"
_NEST_SOURCES = (*_PINNED, "tsconfig.json", "main.ts")
_NPM_CI = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
_EVERY = tuple(Behaviour)
_DATABASE = (Behaviour.DATABASE,)
_NO_DATABASE = tuple(one for one in Behaviour if one is not Behaviour.DATABASE)
_SIMPLE = tuple(one for one in SERVICE if one is not Behaviour.DATABASE)
_NO_POLLER = tuple(one for one in SERVICE if one is not Behaviour.POLLER)  # each worker would poll


@cache
def packages() -> Path:
    """The folder node_modules. Raises MissingError where it cannot be made."""

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
    packages()


def _install_all() -> None:
    """Brings PostgreSQL, too."""
    packages()
    debian.installs_all(postgres.PACKAGE)()


def _install_nest() -> None:
    _nest()


def _options(*, preload: bool, others: str = "") -> dict[str, str]:
    """As the drop-in of the role sets them, beside others."""
    words = [*others.split(), *([f"--require={PRELOAD}"] if preload else [])]
    return {"NODE_OPTIONS": " ".join(words)} if words else {}


def _node(
    program: str, *, preload: bool, sockets: int, others: str
) -> Callable[[Place], Sequence[Process]]:
    def start(place: Place) -> Sequence[Process]:
        variables = {"NODE_PATH": str(packages()), "NODE_ENV": "production"}
        if sockets:
            variables["SOCKETS"] = str(sockets)
        variables |= _options(preload=preload, others=others)
        return [Process(["node", str(_FOLDER / program)], environment=variables)]

    return start


def _start_nest(*, preload: bool) -> Callable[[Place], Sequence[Process]]:
    def start(_: Place) -> Sequence[Process]:
        variables = {"NODE_ENV": "production", **_options(preload=preload)}
        return [Process(["node", str(_nest())], environment=variables)]

    return start


def _app(
    name: str,
    title: str,
    program: str,
    behaviours: Sequence[Behaviour],
    *,
    preload: bool = False,
    sockets: int = 0,
    others: str = "",
) -> App:
    """`sockets`: the most connections to the backend. `others`: more of NODE_OPTIONS."""
    return App(
        name=f"{name}-preload" if preload else name,
        runtime="Node.js",
        title=f"{title}, with the preload" if preload else title,
        start=_node(program, preload=preload, sockets=sockets, others=others),
        behaviours=behaviours,
        install=_install,
    )


def _preloaded(
    name: str,
    title: str,
    program: str,
    behaviours: Sequence[Behaviour] = SERVICE,
    *,
    sockets: int = 0,
    others: str = "",
) -> App:
    return _app(name, title, program, behaviours, preload=True, sockets=sockets, others=others)


def _nest_app(*, preload: bool = False) -> App:
    return App(
        name="nestjs-preload" if preload else "nestjs",
        runtime="Node.js",
        title="NestJS, `HttpService`" + (", with the preload" if preload else ""),
        start=_start_nest(preload=preload),
        behaviours=SERVICE if preload else _EVERY,
        install=_install_nest,
    )


def _start_https(place: Place) -> Sequence[Process]:
    (process,) = _node("express.js", preload=True, sockets=0, others="")(place)
    certificate = {"CERTIFICATE": str(make_certificate(place.folder))}
    return [Process(process.command, environment={**process.environment, **certificate})]


_HTTPS = App(
    name="express-https-preload",
    runtime="Node.js",
    title="Express by HTTPS, axios, with the preload",
    start=_start_https,
    behaviours=SERVICE,
    install=_install,
    protocol="https",
    follows="tls",
)
# Not in the grid: the same handler for all calls.
_REUSED = (Behaviour.AT_ONCE, Behaviour.SLEEP)
REUSED = _preloaded("undici-handler", "undici, one handler", "handler.js", _REUSED)


def _with(app: App, name: str, variables: dict[str, str]) -> App:
    def start(place: Place) -> Sequence[Process]:
        (process,) = app.start(place)
        return [Process(process.command, environment={**process.environment, **variables})]

    return replace(app, name=name, start=start)


SECOND_COPY = _with(REUSED, "undici-copy-preload", {"COPY": "1"})


def constant(*dispatchers: str) -> App:
    """The same options, too. `dispatchers`: names in constant.js."""
    app = _preloaded("undici-constant", "undici, constant options", "constant.js", _REUSED)
    name = "-".join(("undici", *dispatchers))
    return _with(app, name, {"DISPATCHERS": " ".join(dispatchers)})


_TELEMETRY = f"--require={_FOLDER / 'telemetry.js'}"
APPS = (
    _app("node-http", "http, `http.Agent`", "http.js", _NO_DATABASE),
    _preloaded("node-http", "http, `http.Agent`", "http.js", _SIMPLE),
    _app("node-fetch", "http, `fetch`", "fetch.js", _NO_DATABASE),
    _preloaded("node-fetch", "http, `fetch`", "fetch.js", _SIMPLE),
    _preloaded("node-fetch-4", "http, `fetch` with 4 connections", "fetch.js", _SIMPLE, sockets=4),
    _app("express", "Express, axios", "express.js", _EVERY),
    _preloaded("express", "Express, axios", "express.js"),
    replace(
        _preloaded("express-postgres", "Express, pg with a pool, axios", "express.js", _DATABASE),
        install=_install_all,
        postgres=True,
    ),
    _preloaded("express-4", "Express, axios with 4 connections", "express.js", sockets=4),
    _HTTPS,
    _preloaded("express-otel", "Express, OpenTelemetry SDK", "express.js", others=_TELEMETRY),
    _preloaded("express-cluster", "Express, cluster", "cluster.js", _NO_POLLER),
    _preloaded("express-thread", "Express, worker thread", "thread.js"),
    _preloaded("node-module", "ES module, `http.Agent` with 4 connections", "module.mjs", _SIMPLE),
    _preloaded("fastify", "Fastify, undici with 4 connections", "fastify.js", _SIMPLE),
    _nest_app(),
    _nest_app(preload=True),
)
