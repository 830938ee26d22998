"""The doctor's answer in a verdict, from an installed agent or from a trial."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.plugins import EVERYTHING, UNLOCKED, doctors, plugin, report_of, verdict
from throughline.config.model import load
from throughline.features.table import BASE, GROUPS


@pytest.mark.parametrize(
    ("said", "fix", "lockdown", "word", "why"),
    [
        ("instrumentation.go_write is off", "", UNLOCKED, "possible", ""),
        ("not part of this release", "", UNLOCKED, "possible", ""),  # an older one
        (
            *("instrumentation.go_write is off", "", "none [integrity] confidentiality", "off"),
            "instrumentation.go_write is off; lockdown is integrity: the kernel refuses "
            "bpf_probe_write_user",
        ),
        ("missing CAP_SYS_ADMIN", "grant it", UNLOCKED, "off", "missing CAP_SYS_ADMIN"),
    ],
)
def test_what_the_agent_has_not_tried_is_judged_by_preflight(
    tmp_path: Path, said: str, fix: str, lockdown: str, word: str, why: str
) -> None:
    ours = verdict(tmp_path, lockdown=lockdown)
    works = {"state": "on", "wanted": True, "reason": "", "fix": ""}
    off = {"state": "off", "wanted": False, "reason": said, "fix": fix}
    groups = {**dict.fromkeys(EVERYTHING, works), "go_write": off}
    answer = {"version": "0.1.0", "mode": "network", "host": {}, "groups": groups}
    merged = plugin("module_utils.doctor").merge(ours, answer)
    merged.update(source="doctor")
    cell = plugin("filter.throughline_report").cell
    assert cell(merged, "observe")["word"] == "on"
    found = cell(merged, "go_write")
    assert (found["state"], found["word"], found["why"]) == ("off", word, why)


def test_a_trial_says_what_works_and_what_does_not(tmp_path: Path) -> None:
    ours = verdict(tmp_path, lockdown=UNLOCKED)
    wanted = EVERYTHING[:5]
    module = plugin("module_utils.doctor")
    answer = doctors(headers="bpf_object__load headers: EPERM")
    tried = {**ours, **module.merge_trial(ours, answer, wanted=wanted)}
    report, lines = report_of(web=tried)
    (web,) = report["hosts"]
    words = {name: group["word"] for name, group in web["groups"].items()}
    assert words == {
        **dict.fromkeys(wanted, "works"),
        "headers": "off",
        "go_write": "possible",
    }
    assert web["mode"] == "observe", "what the kernel refused does not count"
    assert web["host"]["bpffs"] is None, "the trial's own is no fact of the host"
    assert web["version"] is None and web["tried_version"] == "0.1.0"
    assert "web: headers off: bpf_object__load headers: EPERM -> mend it" in lines


def test_what_a_group_that_works_does_without_is_said(tmp_path: Path) -> None:
    ours = verdict(tmp_path)
    answer = doctors()
    answer["groups"]["observe"]["without"] = [
        {"program": "tl_tick", "gives": "ends of ticks", "reason": "bpf_program__attach: EPERM"}
    ]
    module = plugin("module_utils.doctor")
    tried = {**ours, **module.merge_trial(ours, answer, wanted=EVERYTHING[:5])}
    report, lines = report_of(web=tried)
    assert report["hosts"][0]["groups"]["observe"]["word"] == "works"
    wanted = "web: observe works: without tl_tick: no ends of ticks (bpf_program__attach: EPERM)"
    assert wanted in lines


def test_an_agent_that_does_not_run_serves_nothing(tmp_path: Path) -> None:
    module = plugin("module_utils.doctor")
    for running, word in ((True, "on"), (False, "works")):
        ours = verdict(tmp_path)
        answer = {**doctors(), "agent": {"running": running, "pid": None}}
        found = {**ours, **module.merge(ours, answer), "source": "doctor"}
        report, _lines = report_of(web=found)
        assert report["hosts"][0]["groups"]["observe"]["word"] == word


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Asks a doctor that is this shell script, as this user."""
    trial = plugin("module_utils.trial")
    monkeypatch.setattr(trial, "PLACE", tmp_path)
    monkeypatch.setattr(trial, "become_service", lambda capabilities, **ids: None)
    launcher = tmp_path / "bin/throughline"
    launcher.parent.mkdir()

    def ask(script: str, *, timeout: float) -> Any:
        launcher.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        launcher.chmod(0o755)
        return trial.ask(tmp_path, capabilities=[], wanted=["observe"], timeout=timeout)

    return ask


@pytest.mark.parametrize(
    ("script", "timeout", "problem"),
    [
        ("echo '{\"groups\": {}}'", 10, None),
        ("echo no Python >&2; exit 2", 10, "ended with 2 and said: no Python"),
        ("printf '\\377\\033[2J' >&2; exit 3", 10, "ended with 3 and said: "),
        ("exec sleep 60", 0.2, "gave no answer in 0.2 s"),
    ],
)
def test_what_a_trial_makes_of_the_doctor(
    launched: Callable[..., Any], script: str, timeout: float, problem: str | None
) -> None:
    answer, found = launched(script, timeout=timeout)
    assert (answer is not None, found is None) == (problem is None, problem is None)
    assert problem is None or problem in found


def test_a_doctor_that_is_late_ends_on_sigint_though_we_ignore_it(
    launched: Callable[..., Any], tmp_path: Path
) -> None:
    """A shell ignores SIGINT in what it starts in the background: children inherit that."""
    script = f"trap 'echo tidy > {tmp_path}/tidied; exit' INT\nwhile :; do sleep 0.1; done"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert launched(script, timeout=0.5) == (None, "throughline doctor gave no answer in 0.5 s")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "tidied").read_text() == "tidy\n"


def test_a_release_that_does_not_even_detach(
    launched: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin("module_utils.trial"), "SECONDS_TO_TIDY_UP", 0.2)
    answer, problem = launched("trap '' INT\nexec sleep 60", timeout=0.2)
    assert (answer, problem) == (None, "throughline doctor gave no answer in 0.2 s")


def test_a_trial_has_the_configuration_that_the_agent_would_have(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    trial = plugin("module_utils.trial")
    for wanted in (("observe", "headers"), EVERYTHING):
        path.write_text(json.dumps(trial.configuration(wanted)), encoding="utf-8")
        found = load(path, environment={})
        on = {name for name, group in GROUPS.items() if group.switch in found.switches}
        assert on == set(wanted) - {BASE} and found.propagation.peers
