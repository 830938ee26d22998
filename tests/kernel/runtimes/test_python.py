"""Python tasks: each call has the request of its context as parent, 32 requests at a time.

The stacks are those of the bench (tests/parents), and a service by asyncio alone for each Python
that is installed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures import needs, pythons
from tests.fixtures.paths import CHECKOUT, SERVICES
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.pythons import FOLLOWED
from tests.fixtures.waiting import START_SECONDS, until
from tests.parents import apps
from tests.parents.app import App, Behaviour, MissingError, Place, Process
from tests.parents.cell import Bench
from tests.parents.judge import Result
from tests.parents.python import environment

AT_ONCE, SLEEP, TWO = Behaviour.AT_ONCE, Behaviour.SLEEP, Behaviour.TWO
POOL, AFTER, POLLER = Behaviour.POOL, Behaviour.AFTER, Behaviour.POLLER
MANY = {32: 211}


def alone(python: Path, *variables: str) -> App:
    """The service by asyncio alone, on an interpreter, with these variables."""
    return in_asyncio(["env", *variables, str(python), str(SERVICES / "contexts.py")], python)


def in_asyncio(command: list[str], python: Path) -> App:
    def start(_place: Place) -> Sequence[Process]:
        return [Process(command)]

    return App(
        name=f"asyncio-{python.name}-{len(python.parts)}",
        runtime="Python",
        title=str(python),
        start=start,
        install=lambda: None,
    )


def newest(program: str = "contexts.py", *words: str) -> App:
    """The same on a CPython that this Debian lacks."""
    copies = (SERVICES / "contexts.py", SERVICES / program)
    command = pythons.newest(f"/tmp/{program}", *words, copies=copies)
    return in_asyncio(command, pythons.NEWEST)


def in_interpreters(python: Path, *words: str) -> App:
    """The same in sub-interpreters."""
    command = ["env", "SHARED_PORT=1", str(python), str(SERVICES / "interpreters.py"), *words]
    return in_asyncio(command, python)


def results(
    running: Bench, app: App, *behaviours: Behaviour, requests: dict[int, int] = MANY
) -> dict[Behaviour, Result]:
    try:
        found = dict(running.run(app, behaviours, requests))
    except MissingError as error:
        pytest.skip(str(error))
    assert set(found) == set(behaviours)
    for behaviour, result in found.items():
        assert not result.failures, (app.name, behaviour)
        assert result.wrong == 0, (app.name, behaviour, result.examples)
        assert result.calls >= sum(requests.values()) or behaviour is AFTER
    return found


@pytest.mark.parametrize("python", FOLLOWED, ids=pythons.name)
def test_asyncio_alone(running: Bench, python: Path) -> None:
    all_right(running, alone(python), POOL)


def test_asyncio_on_the_newest_python(running: Bench) -> None:
    all_right(running, newest(), POOL)


@pytest.mark.parametrize("python", [FOLLOWED[0], FOLLOWED[-1]], ids=lambda path: path.name)
def test_a_task_that_goes_on_after_its_answer(running: Bench, python: Path) -> None:
    """Its call is not one of the next request, which the loop has read meanwhile."""
    found = results(running, alone(python, "ITSELF=1"), AT_ONCE, SLEEP, AFTER)
    for behaviour in (AT_ONCE, SLEEP):
        assert found[behaviour].right == found[behaviour].calls, found[behaviour]
    # every second one is an ordinary request; some of these come while the task is still at work
    after = found[AFTER]
    assert after.right >= 105, after
    assert after.none <= after.reasons["root_ambiguous"], after


def all_right(running: Bench, app: App, *more: Behaviour) -> None:
    found = results(running, app, AT_ONCE, SLEEP, TWO, AFTER, POLLER, *more)
    for behaviour, result in found.items():
        assert result.right == result.calls, (behaviour, result)
        called = result.evidence.get("right by python", 0)
        # every second request of `after` is an ordinary one
        expected = {TWO: (422,), AFTER: (105, 106)}.get(behaviour, (211,))
        assert called in expected, (behaviour, result)


@pytest.mark.parametrize(
    ("minor", "lock"),
    # with locks of their own two interpreters of 3.12 crash, also without an agent
    [(12, "shared"), (13, "shared"), (13, "own")],
)
def test_two_interpreters_in_a_process(running: Bench, minor: int, lock: str) -> None:
    """Each has its own contexts, which are followed since 3.12."""
    for python in FOLLOWED:
        if python.name == f"python3.{minor}":
            all_right(running, in_interpreters(python, lock, "2"), POOL)
            return
    pytest.skip(f"there is no Python 3.{minor}")


def test_interpreters_of_the_newest_python(running: Bench) -> None:
    app = newest("interpreters.py", "own", "1")
    for behaviour, result in results(running, app, AT_ONCE, TWO, POLLER).items():
        assert result.right == result.calls, (behaviour, result)


def test_an_interpreter_of_an_older_python(running: Bench) -> None:
    """Before 3.12 it is not known which interpreter a thread runs: off, and counted."""
    older = [path for path in FOLLOWED if int(path.name.removeprefix("python3.")) < 12]
    before = running.traced.counters().get("python_interpreters", 0)
    app = in_interpreters(older[-1], "shared", "1")
    for result in results(running, app, AT_ONCE, TWO).values():
        assert result.right == 0, result
    assert running.traced.counters()["python_interpreters"] - before >= 211


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("fastapi-asyncio", 0),
        ("fastapi-uvloop", 0),
        ("fastapi-threads", 422),  # a ThreadPoolExecutor makes the two calls
        ("aiohttp", 0),
        ("django-asgi", 0),
        ("flask-gevent", 422),  # greenlets of a pool make them
    ],
)
def test_frameworks(running: Bench, name: str, pool: int) -> None:
    app = apps.named(name)
    found = results(running, app, *(one for one in (AT_ONCE, TWO, POLLER) if one in app.behaviours))
    for behaviour, result in found.items():
        assert result.none <= (pool if behaviour is TWO else 0), (behaviour, result)


@pytest.mark.parametrize(
    "name",
    [
        "unix-fastapi-asyncio",
        "unix-fastapi-kept",
        "unix-fastapi-gunicorn",
        "unix-fastapi-hypercorn",
        "unix-aiohttp",
        "unix-flask-gevent",
    ],
)
def test_behind_a_unix_socket(running: Bench, name: str) -> None:
    needs.program("tl_unix_sends")
    app = apps.named(name)
    for behaviour, result in results(running, app, AT_ONCE, SLEEP).items():
        assert result.right == result.calls, (behaviour, result)


def on_uvloop(name: str, *words: str) -> App:
    """A program of tests/services, in the bench's environment."""

    def start(_place: Place) -> Sequence[Process]:
        command = [environment.python(), *words]
        return [Process(command, environment=environment.environment())]

    return App(name, "Python", name, start, install=environment.install)


def test_a_protocol_on_uvloop_that_copies_no_context(running: Bench) -> None:
    """Where its tasks were made tells nothing: neither before a listen nor after a read."""
    app = on_uvloop("queued", str(SERVICES / "queued.py"))
    for result in results(running, app, AT_ONCE, POLLER).values():
        assert "right by python" not in result.evidence, result


LATER = "os.environ['LATER'] = '1'; runpy.run_path"


def on_older_uvloop(name: str, *words: str) -> App:
    """The same on a uvloop that writes for all tasks at the end of the loop's turn."""

    def start(_place: Place) -> Sequence[Process]:
        path = {"PYTHONPATH": f"{environment.older()}:{environment.FOLDER}"}
        command = [environment.python(), *words]
        return [Process(command, environment={**environment.environment(), **path})]

    return App(name, "Python", name, start, install=environment.install)


def test_what_an_older_uvloop_writes_later(running: Bench) -> None:
    app = replace(apps.named("fastapi-session-older"), name="session-older")
    for behaviour, result in results(running, app, AT_ONCE, TWO, AFTER, POLLER).items():
        assert result.right == result.calls, (behaviour, result)


def test_a_call_and_its_requests_answer_in_one_turn_of_an_older_uvloop(running: Bench) -> None:
    """They are written in any order: a call that was made after the answer has no parent."""
    probed(running)
    service = str(SERVICES / "kept.py")
    later = on_older_uvloop("kept-later", "-c", f"import os, runpy; {LATER}({service!r})")
    found = results(running, later, AT_ONCE, AFTER)
    for behaviour, result in found.items():
        assert result.right == result.calls, (behaviour, result)
    results(running, on_older_uvloop("kept", service), AT_ONCE)  # right or none


def probed(running: Bench) -> None:
    """Has the agent probe the bench's interpreter before a service begins to listen."""
    environment.install()
    sleeps = [environment.python(), "-c", "import time; time.sleep(600)"]
    running.traced.spawn("probed", sleeps)

    def has_it() -> bool:
        files = (running.traced.status() or {})["python"]["files"]
        return any(file["processes"] for file in files)

    until(has_it, seconds=START_SECONDS, every=0.1, otherwise=running.traced.log)


# A task that is made when a connection begins serves it: asyncio's streams, aiohttp.
BEGINS = {
    "streams-uvloop": f"runpy.run_path({str(SERVICES / 'contexts.py')!r})",
    "aiohttp-uvloop": "runpy.run_module('web', run_name='__main__')",
}


@pytest.mark.parametrize("name", BEGINS)
def test_a_protocol_on_uvloop_that_copies_when_a_connection_begins(
    running: Bench, name: str
) -> None:
    probed(running)
    code = f"import runpy, uvloop; uvloop.install(); {BEGINS[name]}"
    all_right(running, on_uvloop(name, "-c", code))


def test_the_interpreters_are_those_that_are_meant() -> None:
    assert FOLLOWED
    for path in FOLLOWED:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
        assert said.stdout.startswith(f"Python {path.name.removeprefix('python')}"), path


def test_a_connection_that_a_task_makes_contradicts_nothing(running: Bench) -> None:
    """Also where the thread had served requests before the agent knew the runtime."""
    traced, app, python = running.traced, "contradicts-nothing", FOLLOWED[0]
    port, far = free_port(), free_port()
    environment = {"PATH": os.environ["PATH"], "PORT": str(port)}
    environment["BACKEND"] = f"http://127.0.0.1:{far}"
    backend = [sys.executable, "-m", "tests.parents.backend", str(far)]
    traced.spawn("far", backend, cwd=CHECKOUT)
    traced.spawn(app, ["sleep", "1000"])  # the kernel knows the cgroup
    wait_port(far)
    traced.stop_agent(signal.SIGKILL)  # its programs go on
    traced.spawn(app, [str(python), str(SERVICES / "contexts.py")], env=environment)
    wait_port(port)

    def ask(path: str, count: int) -> None:
        for number in range(count):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}?id={number}") as answer:
                answer.read()

    ask("nothing", 23)
    traced.start_agent()
    time.sleep(10)  # before, while programs take over, nothing is a contradiction
    before = traced.counters()
    ask("sleep", 101)
    after = traced.counters()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["parent_python"] >= 90, grown
    assert not [name for name in grown if name.startswith("contradicted_") and grown[name]], grown


def test_a_killed_agent(running: Bench) -> None:
    """What the next agent does not know it does not guess."""
    app = alone(FOLLOWED[0])
    steps = running.run_across(app, SLEEP, {1: 53, 8: 211, 32: 211}, number=signal.SIGKILL)
    before = next(steps)
    assert before.right == before.calls == 53
    for after in steps:
        assert not after.failures
        assert (after.wrong, after.right) == (0, after.calls), after


def test_what_is_learnt_of_uvloop_is_learnt_again(running: Bench) -> None:
    """A new agent may begin between the read of a request and the callback for it."""
    app = apps.named("fastapi-uvloop")
    steps = running.run(app, (SLEEP,), {count: count for count in (7, 11, 13, 17)})
    _, before = next(steps)
    assert before.right == before.calls == 7
    running.traced.stop_agent()
    running.traced.start_agent()
    for _, after in steps:
        assert not after.failures
        assert after.wrong == 0 and after.right >= after.calls - 4, after
        running.traced.stop_agent()
        running.traced.start_agent()


def test_an_interpreter_that_is_replaced_on_disk(running: Bench, tmp_path: Path) -> None:
    """As by an upgrade: the process executes a file that has no name any more."""
    python = FOLLOWED[0]
    linked = subprocess.run(["ldd", python], capture_output=True, text=True, check=True)
    if "libpython" in linked.stdout:
        pytest.skip(f"{python} has its interpreter in a library")
    copied = tmp_path / python.name
    shutil.copy(python, copied)
    home = f"PYTHONHOME={python.resolve().parent.parent}"
    app = in_asyncio(["env", home, str(copied), str(SERVICES / "contexts.py")], copied)

    def replace() -> None:
        other = copied.with_name("new")
        other.write_bytes(copied.read_bytes() + b"\0")
        other.rename(copied)

    steps = running.run_across(app, SLEEP, {1: 53, 8: 211, 32: 211}, meanwhile=replace)
    before = next(steps)
    assert before.right == before.calls == 53
    for after in steps:
        assert not after.failures
        assert (after.wrong, after.right) == (0, after.calls), after
