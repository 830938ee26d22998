"""Node.js with the preload: each call has the request of its context as parent, 32 at a time.

The stacks are those of the bench (tests/parents).
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.fixtures import needs
from tests.fixtures.paths import SERVICES
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.secure import Secure
from tests.fixtures.spans import Span
from tests.fixtures.traced import Traced
from tests.parents import apps
from tests.parents.app import App, Behaviour, MissingError, Place, Process
from tests.parents.cell import Bench, bench
from tests.parents.judge import Result
from tests.parents.node.apps import PRELOAD

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


def number(span: Span) -> str:
    found = re.search(r"\bid=(\d+)", str(span.attributes))
    assert found is not None, span
    return found[1]


def test_calls_by_https_have_their_request_or_none() -> None:
    """What is written during a handshake is sent inside of it: then nothing is shown."""
    needs.any_uprobes()
    with Traced({"propagation": {"parents": "proven"}}) as traced:
        secure = Secure(traced)
        back, port = secure.python("back"), free_port()
        environment = {"PATH": os.environ["PATH"], "PORT": str(port), "BACK": str(back)}
        environment["NODE_OPTIONS"] = f"--require={PRELOAD}"
        traced.spawn("front", ["node", str(SERVICES / "callhttps.js")], env=environment)
        wait_port(port)
        secure.wait_found("node")

        def ask(path: str, requests: range) -> Counter[str]:
            def one(which: int) -> None:
                url = f"http://127.0.0.1:{port}/{path}?id={which}"
                with urllib.request.urlopen(url, timeout=30) as answer:
                    answer.read()

            traced.receiver.forget_spans()
            with ThreadPoolExecutor(32) as pool:
                list(pool.map(one, requests))
            spans = traced.wait_spans(2 * len(requests), where=lambda s: s.service == "front")
            servers = {span.span_id: span for span in spans if span.kind == "SERVER"}
            found: Counter[str] = Counter()
            for call in (span for span in spans if span.kind == "CLIENT"):
                parent = servers.get(call.parent_span_id)
                right = parent is not None and number(parent) == number(call)
                found["right" if right else "wrong" if call.parent_span_id else "none"] += 1
            return found

        ask("kept", range(23))  # the connections are made
        assert ask("kept", range(100, 311)) == {"right": 211}
        assert ask("own", range(400, 611)) == {"none": 211}
