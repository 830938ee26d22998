"""The health of an agent, and the wait for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.plugins import plugin


def watch(unit: Any, answers: list[dict[str, str]], **options: Any) -> tuple[str | None, int]:
    """What is wrong with an agent of which systemd gives these answers, and how many it took."""
    given = 0

    def run(command: list[str]) -> tuple[int, str, str]:
        nonlocal given
        if command[0] != "systemctl":
            return 3, "null\n", ""  # throughline status: not running
        default = {"ActiveState": "activating", "MainPID": "0", "NRestarts": "0"}
        found = {**default, **answers[min(given, len(answers) - 1)]}
        given += 1
        return 0, "".join(f"{name}={value}\n" for name, value in found.items()), ""

    options = {"groups": [], "since": 0, "timeout": 30, **options}
    _status, problem = unit.wait_until_healthy(run, directory=Path("/nowhere"), **options)
    return problem, given


def test_an_agent_that_will_not_start_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = plugin("module_utils.unit")
    monkeypatch.setattr(unit, "POLL_SECONDS", 0.0)
    failed = {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "2"}
    assert watch(unit, [{}, {}, failed]) == ("has failed (exit-code, exit code 2)", 3)
    # what was killed to be replaced has failed, and its successor is queued
    killed = {"ActiveState": "failed", "Result": "signal", "ExecMainStatus": "9", "Job": "4711"}
    assert watch(unit, [killed, killed, {**failed, "Job": "0"}])[1] == 3
    # a count from before the restart, which systemd then sets back, is no end of this agent
    counts = [{"NRestarts": number} for number in ("7", "0", "1", "2", "3")]
    problem, given = watch(unit, counts)
    assert problem is not None
    assert problem.startswith("has ended 3 times in ")
    assert given == 5
    problem, _given = watch(unit, [{}], timeout=0)
    assert problem == "is not healthy after 0 s: throughline status gives no answer"


def healthy() -> dict[str, Any]:
    return {
        "pid": 7,
        "started_unix": 100.5,
        "healthy": True,
        "groups": {"observe": {"state": "on"}, "headers": "on"},
        "attached": {"programs": [{"name": "tl_sock_ops"}]},
    }


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"healthy": False}, "not healthy"),
        ({"pid": 8}, "process 8"),
        ({"started_unix": 99.0}, "has not taken over"),
        ({"attached": {"programs": []}}, "no program is attached"),
        ({"groups": {"observe": "on", "headers": {"state": "off"}}}, "group headers is off"),
        (
            {"groups": {"observe": "on", "headers": {"state": "off", "wanted": True}}},
            "group headers is off",
        ),
        # auto, and the host cannot give it
        ({"groups": {"observe": "on", "headers": {"state": "off", "wanted": False}}}, None),
    ],
)
def test_an_agent_is_healthy_when_it_traces(change: dict[str, Any], problem: str | None) -> None:
    status = {**healthy(), **change}
    found = plugin("module_utils.health").ailment(
        status, groups=["observe", "headers"], pid=7, since=100
    )
    assert (found is None) if problem is None else (problem in found)


def test_a_failure_comes_with_the_doctors_advice() -> None:
    doctor = {"groups": {"headers": {"state": "off", "wanted": True, "reason": "A", "fix": "B"}}}
    text = plugin("module_utils.health").describe_failure("Message.", json.dumps(doctor), "line\n")
    assert text == "Message.\ndoctor: headers is off: A. Remedy: B.\njournal:\nline"


def test_what_a_release_has_logged_reaches_no_terminal_raw() -> None:
    describe = plugin("module_utils.health").describe_failure
    doctor = {"groups": {"tls": {"state": "off", "wanted": True, "reason": "\x1b[2J", "fix": "B"}}}
    for text in (
        describe("Message.", json.dumps(doctor), "one \x1b]0;owned\x07\ntwo \udcff\n"),
        describe("Message.", "no JSON \x1b[2J", ""),
    ):
        assert all(char.isprintable() or char == "\n" for char in text), text
        assert r"\x1b[2J" in text
