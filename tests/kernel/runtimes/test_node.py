"""Node.js with the preload: each call has the request of its context as parent, 32 at a time.

The stacks are those of the bench (tests/parents).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPSConnection
from queue import Queue

import pytest

from tests.fixtures import needs
from tests.fixtures.paths import SERVICES
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.secure import Secure, get
from tests.fixtures.spans import number
from tests.fixtures.traced import Traced
from tests.parents import apps
from tests.parents.app import App, Behaviour, MissingError, Place, Process
from tests.parents.cell import Bench, bench
from tests.parents.judge import Result
from tests.parents.node.apps import PRELOAD, REUSED, SECOND_COPY, constant, packages

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
        ("express-https-preload", (AT_ONCE, SLEEP, DATABASE, TWO, AFTER, BODY, POLLER)),
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


def test_a_handler_that_is_used_again_is_for_another_request(running: Bench) -> None:
    for behaviour, result in results(running, REUSED, AT_ONCE, SLEEP).items():
        assert not result.failures
        assert (result.wrong, result.right) == (0, result.calls), (behaviour, result)


@pytest.mark.parametrize(
    "dispatchers",
    [
        ("client", "client"),
        ("pipelined", "agent"),
        ("agent", "retried", "composed"),
        ("pool", "client"),
    ],
)
def test_options_and_a_handler_that_are_used_again_are_for_another_request(
    running: Bench, dispatchers: tuple[str, ...]
) -> None:
    """Also where such calls wait for a connection: `pool` has one."""
    for behaviour, result in results(running, constant(*dispatchers), AT_ONCE, SLEEP).items():
        assert not result.failures
        assert (result.wrong, result.right) == (0, result.calls), (behaviour, result)


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        ("waiting", [1, 2, 3, 4]),
        ("late", [1, None, None, 4]),
        ("bound", [1, 2, 3, 4]),
        ("plain", [1, 2, 3]),
        ("destroyed", [1, 2, 4, 5]),
        ("closed", [1, 3, 4]),
        ("frozen", [None, None, 3, 4]),
        ("kept", [1, None, None, 5]),
        ("subclass", [1, 2, 3, "third of 1", "third of 2", "third of 3"]),
    ],
)
def test_calls_of_the_package_undici_are_shown_for_their_requests(
    scenario: str, expected: list[int | str | None]
) -> None:
    """Without an agent, and in an order that load does not change."""
    try:
        folder = packages()
    except MissingError as error:
        pytest.skip(str(error))
    loaded = [f"--require={path}" for path in (SERVICES / "shown.cjs", PRELOAD)]
    done = subprocess.run(
        ["node", *loaded, str(SERVICES / "dispatches.cjs"), scenario],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "UNDICI": str(folder / "undici")},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == expected


def test_a_second_copy_of_undici_is_followed(running: Bench) -> None:
    """From its first connection on: what has waited before has no parent."""
    for behaviour, result in results(running, SECOND_COPY, AT_ONCE, SLEEP).items():
        assert not result.failures
        assert (result.wrong, result.unexplained) == (0, 0), (behaviour, result)
        assert result.none <= 32, (behaviour, result)


def test_without_the_preload_nothing_is_proven(running: Bench) -> None:
    for result in results(running, apps.named("express"), SLEEP).values():
        assert not result.failures
        assert (result.right, result.wrong) == (0, 0), result


@pytest.mark.parametrize("name", ["express-preload", "express-https-preload"])
def test_an_agent_that_begins_later_learns_where_the_request_is_shown(
    running: Bench, name: str
) -> None:
    """Also one that has lost all maps: the process tells again with the next connection."""
    steps = running.run(apps.named(name), (SLEEP,), {1: 23, 8: 101, 32: 211})
    _, before = next(steps)
    assert (before.right, before.calls) == (23, 23)
    running.traced.stop_agent(signal.SIGKILL)
    running.traced.start_agent()
    time.sleep(2)  # probes of TLS libraries are attached again
    _, killed = next(steps)
    assert (killed.wrong, killed.right, killed.failures) == (0, killed.calls, []), killed
    running.traced.stop_agent()
    running.traced.command("detach")
    running.traced.start_agent()
    running.traced.wait_cgroups_known()
    time.sleep(2 if "https" in name else 0)
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


class Calls:
    """tests/services/callhttps.js with the preload, and what its calls have as parents."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.secure = Secure(traced)
        self.plain, self.tls = free_port(), free_port()
        environment = {"PATH": os.environ["PATH"], "PORT": str(self.plain)}
        environment |= {"BACK": str(self.secure.python("back")), "PORT_TLS": str(self.tls)}
        environment["CERTIFICATE"] = str(self.secure.certificate)
        environment["NODE_OPTIONS"] = f"--require={PRELOAD}"
        traced.spawn("front", ["node", str(SERVICES / "callhttps.js")], env=environment)
        wait_port(self.plain)
        wait_port(self.tls)
        self.secure.wait_found("node")

    def over_plain(self, target: str) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.plain}{target}", timeout=30) as answer:
            answer.read()

    def over_tls(self, target: str) -> None:
        get(self.tls, self.secure.trust(), target, {})

    def ask(self, path: str, requests: range, send: Callable[[str], None]) -> Counter[str]:
        def one(which: int) -> None:
            send(f"/{path}?id={which}")

        self.traced.receiver.forget_spans()
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(one, requests))
        count = 2 * len(requests)
        spans = self.traced.wait_spans(count, where=lambda span: span.service == "front")
        servers = {span.span_id: span for span in spans if span.kind == "SERVER"}
        found: Counter[str] = Counter()
        for call in (span for span in spans if span.kind == "CLIENT"):
            parent = servers.get(call.parent_span_id)
            right = parent is not None and number(parent) == number(call)
            found["right" if right else "wrong" if call.parent_span_id else "none"] += 1
        return found


def test_calls_by_https_have_their_request() -> None:
    """Also what is written during a handshake, and sent at the end of it."""
    needs.any_uprobes()
    with Traced({"propagation": {"parents": "proven"}}) as traced:
        calls = Calls(traced)
        assert calls.ask("kept", range(23), calls.over_plain) == {"right": 23}
        assert calls.ask("kept", range(100, 311), calls.over_plain) == {"right": 211}
        assert calls.ask("own", range(400, 611), calls.over_plain) == {"right": 211}


def test_calls_of_requests_by_https_have_their_request() -> None:
    """Over connections of their own: 32 handshakes at a time."""
    needs.any_uprobes()
    with Traced({"propagation": {"parents": "proven"}}) as traced:
        calls = Calls(traced)
        calls.ask("kept", range(2), calls.over_tls)
        assert calls.ask("kept", range(100, 311), calls.over_tls) == {"right": 211}
        assert calls.ask("own", range(400, 611), calls.over_tls) == {"right": 211}


def test_connections_by_https_that_are_older_than_the_agent() -> None:
    """The programs of TLS libraries and what they know end with the agent."""
    needs.any_uprobes()
    with Traced({"propagation": {"parents": "proven"}}) as traced:
        calls = Calls(traced)
        kept: Queue[HTTPSConnection] = Queue()
        for _ in range(32):
            kept.put(HTTPSConnection("127.0.0.1", calls.tls, context=calls.secure.trust()))

        def send(target: str) -> None:
            connection = kept.get()
            try:
                connection.request("GET", target)
                connection.getresponse().read()
            finally:
                kept.put(connection)

        calls.ask("kept", range(100, 203), send)
        traced.stop_agent()
        traced.start_agent()
        calls.secure.wait_found("node")
        time.sleep(6)  # until the process has told again
        # reads are followed once the process was seen to call OpenSSL
        calls.ask("kept", range(300, 301), send)
        assert calls.ask("kept", range(400, 611), send) == {"right": 211}
