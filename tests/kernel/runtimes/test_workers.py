"""Servers of Python that serve each request on one thread: proven by threads, because of what runs.

The stacks are those of the bench (tests/parents). The same application under a server that is not
known has no proven parent.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.fixtures import pythons
from tests.fixtures.paths import SERVICES
from tests.parents.app import App, Behaviour, MissingError, Place, Process
from tests.parents.apps import named
from tests.parents.cell import Bench
from tests.parents.judge import Result
from tests.parents.python import environment
from tests.parents.python.apps import RQ

REQUESTS, CONCURRENT = 211, 32
AT_ONCE, DATABASE, AFTER = Behaviour.AT_ONCE, Behaviour.DATABASE, Behaviour.AFTER
POOL, POLLER = Behaviour.POOL, Behaviour.POLLER


def served(words: Sequence[str]) -> Process:
    """Python with these words, which serve Flask."""
    command = [environment.python(), *words, "wsgi:app"]
    return Process(command, environment=environment.environment())


def run(bench: Bench, app: App, behaviour: Behaviour) -> Result:
    try:
        ((_, result),) = bench.run(app, (behaviour,), {CONCURRENT: REQUESTS})
    except MissingError as error:
        pytest.skip(str(error))
    assert not result.failures, (app.name, behaviour)
    assert result.wrong == 0, (app.name, behaviour, result.examples)
    return result


@pytest.mark.parametrize("behaviour", [AT_ONCE, DATABASE, AFTER, POLLER])
@pytest.mark.parametrize(
    "name", ["flask-gthread", "flask-sync", "flask-run", "flask-app-run", "flask-uwsgi"]
)
def test_a_known_server_of_threads(running: Bench, name: str, behaviour: Behaviour) -> None:
    """Threads share four connections to Redis. A call after the answer and a poller's have none."""
    result = run(running, named(name), behaviour)
    assert result.right == result.calls >= REQUESTS, result
    assert result.evidence["right by thread"] >= REQUESTS // 2


def on_the_newest_python(place: Place) -> Sequence[Process]:
    """gunicorn's threads on a CPython that this Debian lacks."""
    packages = environment.packages()
    words = ("-m", "gunicorn", "--worker-class", "gthread", "--threads", "32")
    more = ("--no-control-socket", "--worker-tmp-dir", "/tmp", "--bind", f"127.0.0.1:{place.port}")
    copies = (packages / "gunicorn", packages / "packaging", SERVICES / "calls.py")
    command = pythons.newest(*words, *more, "calls:application", copies=copies)
    return [Process(command, environment={"PYTHONPATH": "/tmp"})]


@pytest.mark.parametrize("behaviour", [AT_ONCE, Behaviour.SLEEP])
def test_threads_that_have_contexts_of_their_own(running: Bench, behaviour: Behaviour) -> None:
    """Since Python 3.14 each thread runs in a context that nothing was copied into."""
    app = replace(named("flask-gthread"), name="gthread-3.14", start=on_the_newest_python)
    result = run(running, app, behaviour)
    assert result.right == result.calls == REQUESTS, result
    assert result.evidence["right by thread"] == REQUESTS


def test_work_that_is_handed_over_has_no_parent(running: Bench) -> None:
    assert run(running, named("flask-gthread"), POOL).right == 0


@pytest.mark.parametrize("app", [named("celery"), RQ], ids=lambda app: app.name)
def test_a_job_of_a_queue_is_for_no_request(running: Bench, app: App) -> None:
    """Nothing on the host says which request has queued it: it begins a trace (test_jobs.py)."""
    ((_, result),) = running.run(app, (POOL,), {4: 23})
    assert not result.failures
    assert (result.wrong, result.right, result.none) == (0, 0, 23), result
    assert result.reasons["parent_job"] == 23


@pytest.mark.parametrize(("name", "right"), [("mod-wsgi", REQUESTS), ("mod-wsgi-daemon", 0)])
def test_mod_wsgi(running: Bench, name: str, right: int) -> None:
    """Apache's threads run the application, or hand requests over in a protocol of mod_wsgi's."""
    assert run(running, named(name), AT_ONCE).right == right


def test_other_servers_prove_nothing(running: Bench) -> None:
    """waitress reads in one thread, and calls in others."""
    assert run(running, named("flask-waitress"), AT_ONCE).right == 0


@pytest.mark.parametrize("behaviour", [AT_ONCE, POLLER])
def test_greenlets_in_a_worker_that_is_said_to_be_sync(
    running: Bench, behaviour: Behaviour
) -> None:
    """What the arguments say of the workers is not what they do."""
    app = named("flask-sync")

    def start(place: Place) -> Sequence[Process]:
        config = place.folder / "gunicorn.conf.py"
        config.write_text('worker_class = "gevent"\n')
        words = ["-m", "gunicorn", "--config", str(config), "--bind", f"127.0.0.1:{place.port}"]
        return [served(words)]

    result = run(running, replace(app, name="config-gevent", start=start), behaviour)
    assert result.evidence.get("right by thread", 0) == 0
    assert result.evidence["right by python"] == REQUESTS


def test_what_runs_is_known_while_the_agent_is_away(running: Bench) -> None:
    """And the next agent finds it again."""
    app = named("flask-gthread")
    steps = running.run_across(app, AT_ONCE, {1: 53, 8: 53, 32: 211}, number=signal.SIGKILL)
    before = next(steps)
    assert before.right == before.calls == 53
    for after in steps:
        assert not after.failures
        assert (after.wrong, after.right) == (0, after.calls), after


def test_a_worker_that_replaces_another_one_is_known_at_once(running: Bench) -> None:
    """Each serves twenty requests, in less time than the agent takes to look at it."""

    def start(place: Place) -> Sequence[Process]:
        words = ["-m", "gunicorn", "--bind", f"127.0.0.1:{place.port}", "--worker-class", "gthread"]
        words += ["--threads", "4", "--workers", "2", "--max-requests", "20", "--preload"]
        return [served(words)]

    app = replace(named("flask-gthread"), name="replaced", start=start)
    steps = running.run(app, (AT_ONCE,), {1: 5, 8: 211})
    next(steps)
    time.sleep(5)  # it has been known for five seconds: see workers.py
    _, result = next(steps)
    assert not result.failures
    assert (result.wrong, result.right) == (0, result.calls), result


def test_what_is_left_of_a_body_may_be_read_by_any_thread(running: Bench) -> None:
    """A request that is answered before it is read whole contradicts nothing."""
    app = named("flask-gthread")
    ports: list[int] = []

    def start(place: Place) -> Sequence[Process]:
        ports.append(place.port)
        return app.start(place)

    steps = running.run(replace(app, name="unread", start=start), (AT_ONCE,), {1: 5, 8: 101})
    next(steps)
    before = running.traced.counters().get("contradicted_read", 0)
    head = b"POST /at-once?id=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n"
    for _ in range(23):
        with socket.create_connection(("127.0.0.1", ports[0]), timeout=10) as client:
            client.sendall(head + b"Connection: close\r\n\r\n" + bytes(100_000))
            assert b" 405 " in client.recv(4096)
            with contextlib.suppress(ConnectionError):
                client.sendall(bytes(100_000))
    _, result = next(steps)
    assert running.traced.counters().get("contradicted_read", 0) == before
    assert (result.wrong, result.right, result.calls) == (0, 101, 101), result
