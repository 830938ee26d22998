"""Java: threads, virtual threads, executors, Reactor."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.parents import pinned
from tests.parents.app import App, Behaviour, MissingError, Place, Process

_FOLDER = Path(__file__).parent
_SPRING = _FOLDER / "spring"
_MACHINES = Path("/usr/lib/jvm")
_VERSION = re.compile(r'^JAVA_VERSION="(\d+)', re.MULTILINE)
_EVERY = tuple(Behaviour)
_OLD, _NEW = (17, 18), (24, 99)  # releases, the first and one past the last


@cache
def _jdk(first: int, end: int) -> Path:
    """The oldest JDK of some releases."""
    found = {}
    for file in _MACHINES.glob("*/release"):
        version = _VERSION.search(file.read_text(encoding="utf-8"))
        if version and first <= int(version[1]) < end and (file.parent / "bin/javac").exists():
            found[int(version[1])] = file.parent
    if not found:
        raise MissingError(f"there is no JDK {first} in {_MACHINES}")
    return found[min(found)]


@cache
def _server(releases: tuple[int, int]) -> Path:
    source = _FOLDER / "Server.java"
    jdk = _jdk(*releases)

    def build(folder: Path) -> None:
        pinned.run([jdk / "bin/javac", "-d", folder, source], cwd=folder)

    return pinned.directory(f"java-{releases[0]}", [source, jdk / "release"], build)


@cache
def _spring() -> Path:
    sources = sorted(path for path in _SPRING.rglob("*") if path.suffix in {".java", ".xml"})
    return pinned.directory("spring", sources, _build_spring)


def _build_spring(folder: Path) -> None:
    tree = folder / "tree"
    shutil.copytree(_SPRING, tree, ignore=shutil.ignore_patterns("target"))
    java = {"JAVA_HOME": str(_jdk(*_OLD))}
    pinned.run(["mvn", "--batch-mode", "--quiet", "package"], cwd=tree, environment=java)
    for path in tree.glob("*/target/*.jar"):
        shutil.copy2(path, folder / path.name)
    shutil.rmtree(tree)


def _plain(
    name: str,
    title: str,
    releases: tuple[int, int],
    executor: str,
    client: str,
    *,
    behaviours: Sequence[Behaviour] = _EVERY,
) -> App:
    """The JDK's own server."""

    def start(_: Place) -> Sequence[Process]:
        java = str(_jdk(*releases) / "bin/java")
        return [Process([java, "-cp", str(_server(releases)), "Server", executor, client])]

    def install() -> None:
        _server(releases)

    return App(
        name=name,
        runtime="Java",
        title=title,
        start=start,
        behaviours=behaviours,
        install=install,
        follows="java",
    )


def _boot(name: str, title: str, releases: tuple[int, int], jar: str, **variables: str) -> App:
    """A Spring Boot application: variables are its properties."""

    def start(place: Place) -> Sequence[Process]:
        properties = {
            "SERVER_ADDRESS": "127.0.0.1",
            "SERVER_PORT": str(place.port),
            "SPRING_DATA_REDIS_HOST": "127.0.0.1",
            "SPRING_DATA_REDIS_PORT": str(place.redis),
        }
        command = [str(_jdk(*releases) / "bin/java"), "-jar", str(_spring() / jar)]
        return [Process(command, environment={**properties, **variables})]

    def install() -> None:
        _jdk(*releases)
        _spring()

    return App(
        name=name,
        runtime="Java",
        title=title,
        start=start,
        behaviours=_EVERY,
        install=install,
        follows="java",
    )


APPS = (
    _plain("java-threads", "HttpServer with a pool, HttpURLConnection", _OLD, "threads", "url"),
    _plain("java-client", "HttpServer with a pool, HttpClient", _OLD, "threads", "client"),
    _plain(
        "java-shared",
        "HttpServer, `supplyAsync` on the server's pool, HttpURLConnection",
        _OLD,
        "shared",
        "url",
        behaviours=(Behaviour.AT_ONCE, Behaviour.SLEEP),
    ),
    _plain("java-virtual", "virtual threads, HttpURLConnection", _NEW, "virtual", "url"),
    _plain("java-virtual-client", "virtual threads, HttpClient", _NEW, "virtual", "client"),
    _boot("spring-mvc", "Spring MVC, RestTemplate", _OLD, "mvc.jar", CLIENT="resttemplate"),
    _boot("spring-mvc-restclient", "Spring MVC, RestClient", _OLD, "mvc.jar", CLIENT="restclient"),
    _boot(
        "spring-mvc-virtual",
        "Spring MVC on virtual threads, RestTemplate",
        _NEW,
        "mvc.jar",
        CLIENT="resttemplate",
        SPRING_THREADS_VIRTUAL_ENABLED="true",
    ),
    _boot("spring-webflux", "Spring WebFlux, WebClient", _OLD, "webflux.jar"),
)
