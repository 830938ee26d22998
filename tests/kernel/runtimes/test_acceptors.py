"""`python app.py` that runs a server of threads: known by what a thread is calling.

Werkzeug's `run_simple`, which `app.run()` of Flask calls, and servers of the standard library, on
each Python that is installed; cheroot. Threads of the application's own beside are no evidence.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures import cgroup, pythons
from tests.fixtures.paths import SERVICES
from tests.fixtures.pythons import FOLLOWED
from tests.fixtures.waiting import until
from tests.parents.app import App, Behaviour, MissingError, Place, Process
from tests.parents.cell import Bench
from tests.parents.judge import Result
from tests.parents.python import environment
from tests.parents.python.apps import APPS
from throughline.bpf import abi
from throughline.bpf.runtimes import Entry

AT_ONCE, SLEEP, DATABASE = Behaviour.AT_ONCE, Behaviour.SLEEP, Behaviour.DATABASE
AFTER = Behaviour.AFTER
WORKERS, SHARED = abi.RuntimeFlags.RUNTIME_WORKERS, abi.RuntimeFlags.RUNTIME_SHARED
(CHEROOT,) = (each for each in APPS if each.name == "flask-cheroot")
(HTTP_SERVER,) = (each for each in APPS if each.name == "http-server")
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


@pytest.mark.parametrize("kind", ["threading", "thread"])
@pytest.mark.parametrize("python", FOLLOWED, ids=pythons.name)
def test_the_standard_library(running: Bench, python: Path, kind: str) -> None:
    words = (str(python), str(SERVICES / "standard.py"), kind)
    all_right(running, app(f"{kind}-{pythons.name(python)}", *words), AT_ONCE, SLEEP)


def test_the_standard_library_on_the_newest_python(running: Bench) -> None:
    file = SERVICES / "standard.py"
    words = pythons.newest("/tmp/standard.py", "threading", copies=(file,))
    all_right(running, app("threading-newest", *words), AT_ONCE, SLEEP)


def test_an_answer_whose_end_waits_in_the_socket(running: Bench) -> None:
    """The body is written behind the header, and TCP waits until the header is acknowledged."""
    (result,) = results(running, HTTP_SERVER, AFTER, number=503)
    assert result.right == result.calls == 503, result


def test_one_connection_at_a_time(running: Bench) -> None:
    words = (environment.python(), str(SERVICES / "standard.py"), "wsgiref")
    all_right(running, app("wsgiref", *words), AT_ONCE, SLEEP)


def test_a_class_that_hands_connections_to_threads_of_its_own(running: Bench) -> None:
    """They do each other's work."""
    words = (environment.python(), str(SERVICES / "standard.py"), "pool")
    pool = replace(app("pool", *words), accepts=False)
    for result in results(running, pool, AT_ONCE, number=503):
        assert result.right == 0, result


def test_other_servers_that_are_asked_first(running: Bench) -> None:
    words = (environment.python(), str(SERVICES / "standard.py"), "beside")
    all_right(running, app("beside", *words), AT_ONCE, SLEEP)


def test_cheroot(running: Bench) -> None:
    """Its pool is older than its first connection, and a connection's requests go to any of it."""
    all_right(running, CHEROOT, AT_ONCE, SLEEP, DATABASE, number=503)


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


def test_threads_that_do_each_others_work_beside_cheroot(running: Bench) -> None:
    words = (environment.python(), str(SERVICES / "swap.py"), "cheroot")
    swaps = app("swap-cheroot", *words, OTHER_PORT="{spare}")
    for _, result in running.run(replace(swaps, accepts=False), (AT_ONCE,), {8: 101, 32: 1009}):
        assert not result.failures
        assert (result.right, result.wrong) == (0, 0), result


def test_a_thread_that_accepts_for_others_when_its_server_has_ended(running: Bench) -> None:
    """Also where the agent does not look at that moment."""
    ports: list[int] = []
    ends = app("swap-after", environment.python(), str(SERVICES / "swap.py"), "after")

    def start(place: Place) -> Sequence[Process]:
        ports.append(place.port)
        return ends.start(place)

    steps = running.run(replace(ends, start=start), (AT_ONCE,), {8: 101, 32: 503})
    _, result = next(steps)
    assert result.right == result.calls == 101, result
    agent = running.traced.agent
    assert agent is not None
    agent.send_signal(signal.SIGSTOP)
    goes_on = threading.Timer(6.0, agent.send_signal, (signal.SIGCONT,))
    goes_on.start()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/end?id=0", timeout=10) as answer:
            answer.read()
        wait_listening_again(ports[0])
        _, result = next(steps)
    finally:
        goes_on.join()
    assert not result.failures
    assert result.calls == 503
    assert (result.right, result.wrong) == (0, 0), result


def wait_listening_again(port: int) -> None:
    """The server answers with the word of a thread that does others' work."""

    def is_listening() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/?id=0", timeout=10) as answer:
                return answer.headers["Server"] is None
        except OSError:
            return False

    until(is_listening, seconds=10)


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
