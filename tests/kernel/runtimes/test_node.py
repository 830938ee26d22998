"""Node.js with the preload: each call has the request of its context as parent, 32 at a time.

The stacks are those of the bench (tests/parents).
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator

import pytest

from tests.fixtures.paths import SERVICES
from tests.parents import apps
from tests.parents.app import App, Behaviour, MissingError, Place, Process
from tests.parents.cell import Bench, bench
from tests.parents.judge import Result

AT_ONCE, SLEEP, TWO = Behaviour.AT_ONCE, Behaviour.SLEEP, Behaviour.TWO
DATABASE, AFTER = Behaviour.DATABASE, Behaviour.AFTER
POLLER, BODY = Behaviour.POLLER, Behaviour.BODY
MANY = {32: 211}


@pytest.fixture(scope="module")
def running() -> Iterator[Bench]:
    with bench() as found:
        yield found


def results(running: Bench, app: App, *behaviours: Behaviour) -> dict[Behaviour, Result]:
    try:
        found = dict(running.run(app, behaviours, MANY))
    except MissingError as error:
        pytest.skip(str(error))
    assert set(found) == set(behaviours)
    return found


@pytest.mark.parametrize(
    ("name", "behaviours"),
    [
        ("express-4-preload", (AT_ONCE, SLEEP, DATABASE, TWO, AFTER, BODY, POLLER)),
        ("express-otel-preload", (SLEEP, AFTER)),
        ("express-cluster-preload", (SLEEP,)),
        ("express-thread-preload", (SLEEP,)),
        ("node-module-preload", (SLEEP, BODY)),
        ("node-fetch-4-preload", (AT_ONCE, TWO, POLLER)),
        ("fastify-preload", (SLEEP, TWO)),
    ],
)
def test_each_call_has_its_request(
    running: Bench, name: str, behaviours: tuple[Behaviour, ...]
) -> None:
    for behaviour, result in results(running, apps.named(name), *behaviours).items():
        assert not result.failures, (name, behaviour)
        assert (result.wrong, result.right) == (0, result.calls), (name, behaviour, result)
        called = result.evidence.get("right by node", 0)
        # every second request of `after` is an ordinary one
        expected = {TWO: (422,), AFTER: (105, 106)}.get(behaviour, (211,))
        assert called in expected, (name, behaviour, result)


def test_without_the_preload_nothing_is_proven(running: Bench) -> None:
    for result in results(running, apps.named("express"), SLEEP).values():
        assert not result.failures
        assert (result.right, result.wrong) == (0, 0), result


def test_an_agent_that_begins_later_learns_where_the_request_is_shown(running: Bench) -> None:
    """Also one that has lost all maps: the process tells again every five seconds."""
    app = apps.named("express-preload")
    steps = running.run(app, (SLEEP,), {1: 23, 8: 101, 32: 211})
    _, before = next(steps)
    assert (before.right, before.calls) == (23, 23)
    running.traced.stop_agent(signal.SIGKILL)
    running.traced.start_agent()
    _, killed = next(steps)
    assert (killed.wrong, killed.right, killed.failures) == (0, killed.calls, []), killed
    running.traced.stop_agent()
    running.traced.command("detach")
    running.traced.start_agent()
    time.sleep(6)
    _, after = next(steps)
    assert (after.wrong, after.right, after.failures) == (0, after.calls, []), after


def test_what_a_process_says_is_about_itself(running: Bench) -> None:
    """A program that tells addresses and numbers of all kinds has no parent, and harms nobody."""

    def start(_: Place) -> list[Process]:
        return [Process([sys.executable, str(SERVICES / "pretender.py")])]

    pretender = App("pretender", "Python", "pretender", start, behaviours=(AT_ONCE,))
    for result in results(running, pretender, AT_ONCE).values():
        assert not result.failures
        assert (result.right, result.wrong) == (0, 0), result
        assert result.none == result.calls
