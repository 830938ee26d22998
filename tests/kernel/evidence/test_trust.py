"""Which evidence is proven, and what takes likely evidence away.

The services do what threads cannot tell. With `proven` no call of theirs may have a wrong parent.
With `likely` the kernel has to see what contradicts the evidence: a few calls are wrong until then.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import cgroup
from tests.fixtures.measured import measure
from tests.fixtures.paths import SERVICES
from tests.fixtures.traced import Traced
from tests.fixtures.waiting import poll
from throughline.agent.parents import READ_SECONDS
from throughline.bpf import libbpf
from throughline.bpf.trust import Trust, read

REQUESTS, CONCURRENT = 797, 32
# What the kernel may see first of an event loop whose timers call. One that is never idle makes
# their calls in a turn that has read requests: then only their answers come too late.
TIMERS = ("idle", "late", "connection")
# name -> command, what the kernel sees: at least one of these
CONTRADICTED = {
    "early": (["node", str(SERVICES / "onward.js"), "{port}", "{next}", "early"], TIMERS),
    "poller": (["node", str(SERVICES / "onward.js"), "{port}", "{next}", "poller"], TIMERS),
    "swap-taker": (["ruby", str(SERVICES / "swap.rb"), "{port}", "{next}", "taker"], ("answer",)),
    "java-shared": (["java", str(SERVICES / "Shared.java"), "{port}", "{next}"], ("answer",)),
}
# no system call shows that these threads do each other's work: likely evidence stays wrong
UNSEEN = {"swap-reader": ["ruby", str(SERVICES / "swap.rb"), "{port}", "{next}", "reader"]}

# PHP-FPM is known by its name, PHP alone is not
LOOPS = {"php-loop": ["php", str(SERVICES / "loop.php"), "{port}", "{next}"]}


@pytest.fixture(scope="module")
def proven() -> Iterator[Traced]:
    with Traced({"propagation": {"parents": "proven"}}) as found:
        yield found


@pytest.fixture(scope="module")
def likely() -> Iterator[Traced]:
    with Traced({"propagation": {"parents": "likely"}}) as found:
        yield found


def wait_parents(
    traced: Traced, service: str, enough: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """What the status shows of the calls of a service. The agent reads it every ten seconds."""
    return poll(
        lambda: (traced.status() or {}).get("services", {}).get(service, {}).get("parents", {}),
        enough=lambda found: bool(found) and enough(found),
        seconds=READ_SECONDS + 10,
        every=0.2,
    )


def sum_of(shown: dict[str, Any]) -> int:
    """The calls."""
    return int(shown["proven"] + shown["likely"] + sum(shown["none"].values()))


def trust_of(traced: Traced, service: str) -> Trust:
    """What is known of the program of a service that has served or called most."""
    cgroup = (traced.cgroup / service).stat().st_ino
    table = libbpf.get_pinned(next(traced.bpffs.glob("abi*/tl_trust")))
    try:
        found = [one for one in read(table) if one.cgroup_id == cgroup]
    finally:
        os.close(table)
    return max(found, key=lambda one: sum(one.found.values()))


def run(traced: Traced, name: str, command: list[str], tmp_path: Path) -> dict[str, int]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is missing")
    return measure(traced, name, command, tmp_path, requests=REQUESTS, concurrent=CONCURRENT)


@pytest.mark.parametrize("name", [*CONTRADICTED, *UNSEEN, *LOOPS])
def test_nothing_is_proven_by_threads_that_do_other_requests_work(
    proven: Traced, name: str, tmp_path: Path
) -> None:
    command = {**UNSEEN, **LOOPS}.get(name) or CONTRADICTED[name][0]
    result = run(proven, name, command, tmp_path)
    assert result["wrong"] == 0
    found = trust_of(proven, name).found
    assert found["proven"] == found["likely"] == 0
    assert sum(found.values()) >= REQUESTS


@pytest.mark.parametrize("name", CONTRADICTED)
def test_a_contradiction_takes_likely_evidence_away(
    likely: Traced, name: str, tmp_path: Path
) -> None:
    command, kinds = CONTRADICTED[name]
    result = run(likely, name, command, tmp_path)
    assert result["wrong"] <= 0.03 * REQUESTS
    trust = trust_of(likely, name)
    seen = [kind for kind in kinds if trust.seen[kind]]
    assert seen
    assert trust.found["likely"] <= 0.1 * REQUESTS
    # a JVM is known after a moment: then its own rules refuse what its threads share
    reason = "contradicted" if trust.found["contradicted"] else "nothing"
    counter = "root_contradicted" if trust.found["contradicted"] else "root_java_shared_thread"
    counters = likely.counters()
    assert all(counters[f"contradicted_{kind}"] for kind in seen) and counters[counter]
    shown = wait_parents(likely, name, lambda found: sum_of(found) >= sum(trust.found.values()))
    assert all(shown["contradicted"][kind] for kind in seen) and shown["none"][reason]


def test_processes_with_one_thread_earn_it(proven: Traced, tmp_path: Path) -> None:
    command = [sys.executable, str(SERVICES / "prefork.py"), "{port}", "{next}"]
    result = run(proven, "prefork", command, tmp_path)
    assert result["wrong"] == 0
    assert result["right"] >= REQUESTS - 32  # eight workers at once, until sixteen are answered


def test_a_program_with_threads_does_not(proven: Traced, tmp_path: Path) -> None:
    command = ["ruby", str(SERVICES / "threads.rb"), "{port}", "{next}"]
    result = run(proven, "threads", command, tmp_path)
    assert result["wrong"] == result["right"] == 0
    found = wait_parents(
        proven, "threads", lambda found: sum(found["none"].values()) >= 2 * REQUESTS
    )
    assert found["proven"] == found["likely"] == 0
    assert sum(found["none"].values()) == 2 * REQUESTS
    # now and then a thread of Ruby waits for signals, too: it looks like an event loop then
    assert set(found["none"]) <= {"not_proven", "ambiguous", "nothing"}, found
    assert trust_of(proven, "threads").found["not_proven"] == found["none"]["not_proven"]


def test_the_rule_of_a_service_decides(tmp_path: Path) -> None:
    with Traced({"propagation": {"parents": "proven"}}) as traced:
        rules = [
            {"match": {"cgroup": f"{traced.name}/trusted"}, "parents": "likely"},
            {"match": {"cgroup": f"{traced.name}/*"}},
        ]
        traced.configure(services=rules)
        assert not traced.stop_agent()
        traced.start_agent()
        command = ["ruby", str(SERVICES / "threads.rb"), "{port}", "{next}"]
        trusted = run(traced, "trusted", command, tmp_path)
        # now and then a thread of Ruby waits for signals, too, as an event loop would
        assert trusted["right"] >= 0.97 * 2 * REQUESTS
        assert trusted["wrong"] == 0
        spans = [
            span
            for span in traced.receiver.spans
            if span.service == "trusted" and span.kind == "CLIENT"
        ]
        assert {span.evidence for span in spans} <= {"thread", "restore", "connect"}
        assert {span.attributes["throughline.parent.trust"] for span in spans} == {"likely"}
        assert run(traced, "other", command, tmp_path)["right"] == 0


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_contradictions_outlast_restarts(stop: signal.Signals, tmp_path: Path) -> None:
    """The service begins again in a new cgroup of the same name, and the agent with it."""
    command, kinds = CONTRADICTED["early"]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is missing")
    with Traced({"propagation": {"parents": "likely"}}) as traced:
        measure(traced, "again", command, tmp_path, requests=211, concurrent=CONCURRENT)
        seen = trust_of(traced, "again").seen
        assert any(seen[kind] for kind in kinds)
        before = (traced.cgroup / "again").stat().st_ino
        cgroup.remove(traced.cgroup / "again")
        traced.stop_agent(stop)
        traced.start_agent()
        result = measure(traced, "again", command, tmp_path, requests=211, concurrent=CONCURRENT)
        assert (traced.cgroup / "again").stat().st_ino != before
        assert result["wrong"] == result["right"] == 0
        trust = trust_of(traced, "again")
        assert trust.found["likely"] == 0 and trust.found["contradicted"]
        # of another service nothing is known: one request at a time contradicts nothing
        measure(traced, "other", command, tmp_path, requests=3, concurrent=1)
        assert trust_of(traced, "other").found["likely"]
