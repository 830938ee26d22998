"""`python app.py` that runs a server of threads: known by what a thread is calling.

Werkzeug's `run_simple`, which `app.run()` of Flask calls, on each Python that is installed. Threads
of the application's own beside it are no evidence.
"""

from __future__ import annotations

import contextlib
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures import cgroup, pythons
from tests.fixtures.paths import SERVICES
from tests.fixtures.pythons import FOLLOWED
from tests.parents.app import App, Behaviour, MissingError, Place, Process
from tests.parents.cell import Bench
from tests.parents.judge import Result
from tests.parents.python import environment
from throughline.bpf import abi
from throughline.bpf.runtimes import Entry

AT_ONCE, SLEEP, DATABASE = Behaviour.AT_ONCE, Behaviour.SLEEP, Behaviour.DATABASE
WORKERS, SHARED = abi.RuntimeFlags.RUNTIME_WORKERS, abi.RuntimeFlags.RUNTIME_SHARED
FLASK = "import wsgi; wsgi.app.run(port={port}, {options})"


def app(name: str, *words: str, **more: str) -> App:
    """An application whose packages are those of the bench, whatever its Python is."""

    def start(place: Place) -> Sequence[Process]:
        paths = f"{environment.packages()}:{environment.FOLDER}"
        variables = {**environment.environment(), "PYTHONPATH": paths}
        variables |= {key: value.format(spare=place.spare) for key, value in more.items()}
        command = [word.replace("{port}", str(place.port)) for word in words]
        return [Process(command, environment=variables)]

    return App(
        name=name,
        runtime="Python",
        title=name,
        start=start,
        install=environment.install,
        follows="python",
        accepts=True,
    )


def results(bench: Bench, app: App, *behaviours: Behaviour, number: int = 211) -> list[Result]:
    try:
        found = [result for _, result in bench.run(app, behaviours, {32: number})]
    except MissingError as error:
        pytest.skip(str(error))
    for result in found:
        assert not result.failures
        assert result.wrong == 0, result.examples
    return found


def all_right(bench: Bench, app: App, *behaviours: Behaviour, number: int = 211) -> None:
    for result in results(bench, app, *behaviours, number=number):
        assert result.right == result.calls == number, result
        assert result.evidence == {"right by thread": number}


@pytest.mark.parametrize("python", FOLLOWED, ids=pythons.name)
def test_werkzeug(running: Bench, python: Path) -> None:
    words = (str(python), str(SERVICES / "simple.py"), "threaded")
    all_right(running, app(f"werkzeug-{pythons.name(python)}", *words), AT_ONCE, SLEEP)


def test_werkzeug_on_the_newest_python(running: Bench) -> None:
    """There each thread runs in a context of its own."""
    environment.install()
    packages = environment.packages()
    needed = (*packages.glob("werkzeug*"), *packages.glob("markupsafe*"))
    words = pythons.newest("/tmp/simple.py", "threaded", copies=(SERVICES / "simple.py", *needed))
    all_right(running, app("werkzeug-newest", *words), AT_ONCE, SLEEP)


@pytest.mark.parametrize(
    "python", [path for path in FOLLOWED if path.name != "python3.9"], ids=pythons.name
)
def test_flask_with_a_database(running: Bench, python: Path) -> None:
    """Threads share four connections to Redis."""
    code = FLASK.replace("{options}", "")
    all_right(
        running, app(f"flask-{pythons.name(python)}", str(python), "-c", code), DATABASE, number=503
    )


@pytest.mark.parametrize("options", ["debug=True", "threaded=False"])
def test_options_of_flask(running: Bench, options: str, tmp_path: Path) -> None:
    """With the reloader another thread serves than the main one, in a process of its own."""
    file = tmp_path / "app.py"
    file.write_text(f"import os\nport = os.environ['PORT']\n{FLASK}".replace("{port}", "int(port)"))
    file.write_text(file.read_text().replace("{options}", options))
    tmp_path.chmod(0o755)
    name = options.partition("=")[0]
    all_right(running, app(f"flask-{name}", environment.python(), str(file)), AT_ONCE, DATABASE)


@contextlib.contextmanager
def asked(port: int) -> Iterator[None]:
    """Another port is asked meanwhile."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(0.005):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                assert answer.read() == b"ok"

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def known(bench: Bench, service: str) -> Entry:
    """What the programs know of the process of a service."""
    (entry,) = bench.known(cgroup.pids(bench.traced.cgroup / service))
    return entry


def test_threads_that_do_each_others_work_beside_a_known_server(running: Bench) -> None:
    words = (environment.python(), str(SERVICES / "swap.py"))
    swaps = app("swap-beside", *words, OTHER_PORT="{spare}")
    ports: list[int] = []

    def start(place: Place) -> Sequence[Process]:
        ports.append(place.spare)
        return swaps.start(place)

    steps = running.run(replace(swaps, start=start), (AT_ONCE,), {8: 101, 32: 1009})
    next(steps)
    with asked(ports[0]):
        _, result = next(steps)
        entry = known(running, "swap-beside-at-once")
    assert not result.failures
    assert (result.right, result.wrong, result.none) == (0, 0, 1009), result
    # so it was known to run that server, which was asked
    assert (entry.port, entry.flags & (WORKERS | SHARED)) == (ports[0], WORKERS)


def test_threads_that_accept_where_a_known_server_does(running: Bench) -> None:
    """It is no known server any more, for as long as the process lives."""
    words = (environment.python(), str(SERVICES / "swap.py"), "share")
    steps = running.run(app("swap-share", *words), (AT_ONCE,), {32: 503, 8: 211})
    for _, result in steps:
        assert not result.failures
        assert result.wrong == 0, result.examples
        entry = known(running, "swap-share-at-once")
    assert entry.flags & SHARED
    assert result.right == 0, result
