"""Upgrades: a release that does not become healthy is rolled back, and a good one stays.

rollback.yml goes back from it. tests/fleet/test_upgrade.py looks at other hosts and batches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from machine import Look, Machine
from test_chain import SPANS, check_traces
from tests.fleet import releases
from tests.vms.expected import GROUPS

pytestmark = [
    pytest.mark.usefixtures("accepted", "also"),
    pytest.mark.timeout(1200),
    pytest.mark.proves(*GROUPS),
]

BETTER = "99.0.0"
GIVE_UP_SECONDS = 180


def make(machine: Machine, folder: Path, *, fault: str) -> str:
    """A further release, made from the one of this run."""
    bundle = releases.newest(machine.folder / "dist")
    return str(releases.make(bundle, folder, version=BETTER, fault=fault))


def serving(look: Look) -> tuple[str, str]:
    """The running version, and the release that the link `current` names."""
    return look["agent"]["status"]["version"], look["agent"]["release"]


def test_a_release_that_is_not_healthy_gives_way(
    machine: Machine, tmp_path: Path, seen: dict[str, Any]
) -> None:
    before = machine.look(healthy=60)
    broken = make(machine, tmp_path, fault="unhealthy")
    played = machine.play(
        "upgrade", throughline_bundle=broken, throughline_health_timeout=GIVE_UP_SECONDS
    )
    words = " ".join(played.output.partition("fatal: ")[2].split())
    seen.update(code=played.code, message=words[:600])
    assert played.code != 0
    assert "Rolled back: " in words
    assert "doctor: headers is off: this release cannot attach it" in words
    after = machine.look(healthy=60)
    assert serving(after) == serving(before)
    assert after["agent"]["status"]["healthy"] is True
    check_traces(machine, machine.send("gaveway", spans=SPANS))


def test_a_good_release_takes_over_and_the_one_before_comes_back(
    machine: Machine, tmp_path: Path, seen: dict[str, Any]
) -> None:
    before = machine.look(healthy=60)
    played = machine.play("upgrade", throughline_bundle=make(machine, tmp_path, fault="none"))
    assert played.code == 0, played.output[-3000:]
    after = machine.look(healthy=60)
    seen["upgraded"] = serving(after)
    assert serving(after)[0] == BETTER
    assert serving(after)[1] != serving(before)[1]
    assert after["agent"]["unit"]["MainPID"] == before["agent"]["unit"]["MainPID"], "a reload"
    check_traces(machine, machine.send("upgraded", spans=SPANS))
    played = machine.play("rollback")
    assert played.code == 0, played.output[-3000:]
    back = machine.look(healthy=60)
    seen["rolled back"] = serving(back)
    assert serving(back) == serving(before)
    check_traces(machine, machine.send("back", spans=SPANS))
