"""Upgrades on real hosts: good ones, ones that go back by themselves, and going back by hand."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import joined, playbook, releases
from tests.fleet.playbook import PlaybookError
from tests.fleet.rollout import Shop, answers, load, rolled_out

BUNDLES = sorted(releases.DIST.glob(releases.PATTERN))

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="fleet hosts need root"),
    pytest.mark.skipif(not BUNDLES, reason="no agent bundle in dist/: run make bundle"),
]

NAME = "upgrade"
UNIT = "/etc/systemd/system/throughline.service"
# What an upgrade may change on a host, and what a rollback must bring back.
STATE = (
    "readlink /opt/throughline/current /opt/throughline/previous;"
    f" sha256sum {UNIT} {UNIT}.d/*.conf /etc/throughline/config.yaml;"
    " stat -c '%a %U:%G' /etc/throughline/config.yaml"
)
ATTACHED = "group observe is on"  # what the agent says each time it has started


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A build meanwhile does not change the bundle."""
    bundle = Path(shutil.copy(releases.newest(), tmp_path_factory.mktemp("dist")))
    with rolled_out(NAME, bundle) as rolled:
        yield rolled


def upgrade(running: Shop, bundle: Path, *options: str, **variables: object) -> str:
    """Runs playbooks/upgrade.yml one host after the other and returns its output."""
    defaults = {"throughline_bundle": str(bundle), "throughline_serial": [1, 1, 1]}
    return playbook.run(
        running.fleet, playbook.UPGRADE, *options, quiet=True, **{**defaults, **variables}
    )


def state(running: Shop, number: int) -> str:
    return running.fleet.run(running.fleet.hosts[number], STATE, check=False).stdout


def version(running: Shop, number: int) -> str:
    """The version of the agent that serves on a host."""
    command = "/opt/throughline/current/bin/throughline --version"
    return running.fleet.run(running.fleet.hosts[number], command).stdout.split()[-1]


def named(bundle: Path, of_version: str) -> str:
    """A release as messages name it."""
    return f"{of_version} (release {hashlib.sha256(bundle.read_bytes()).hexdigest()[:12]})"


def starts(running: Shop, number: int) -> int:
    """How often the agent has attached its programs on a host since it was booted."""
    command = f"journalctl -u throughline -o cat | grep -c '{ATTACHED}'"
    return int(running.fleet.run(running.fleet.hosts[number], command, check=False).stdout)


def recap(output: str) -> dict[str, dict[str, int]]:
    """{host: {"ok": 3, "changed": 0, …}} from the end of a playbook's output."""
    lines = output.rpartition("PLAY RECAP")[2].splitlines()[1:]
    return {
        line.split()[0]: {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", line)}
        for line in lines
        if ":" in line
    }


def assert_joined(running: Shop, name: str) -> None:
    """Every hop of new requests is in one trace, with the right parents."""
    requests = running.order(*(f"{name}{number}" for number in range(7)))
    assert joined.check(requests, running.spans_of(requests)) == []


def test_check_mode_says_what_would_be_done(running: Shop, tmp_path: Path) -> None:
    bundle = releases.make(running.bundle, tmp_path, version="0.2.0")
    before = [(state(running, number), running.pid(number)) for number in range(3)]
    output = upgrade(running, bundle, "--check", "--diff")
    assert "+current -> release " in output
    assert all(host["changed"] == 2 for host in recap(output).values()), output
    assert [(state(running, number), running.pid(number)) for number in range(3)] == before


def test_a_release_that_refuses_the_configuration_is_not_tried(
    running: Shop, tmp_path: Path
) -> None:
    bundle = releases.make(running.bundle, tmp_path, version="0.2.1", fault="refuses")
    before = [(state(running, number), running.pid(number)) for number in range(3)]
    with pytest.raises(PlaybookError, match="this release wants it otherwise") as refused:
        upgrade(running, bundle)
    assert "Found a configuration that 0.2.1 (release " in refused.value.output
    assert recap(refused.value.output)[f"{NAME}1"]["failed"] == 1
    assert [(state(running, number), running.pid(number)) for number in range(3)] == before


@pytest.mark.parametrize("fault", ["unhealthy", "crashes", "dies", "hangs"])
def test_a_host_goes_back_and_the_others_are_not_touched(
    running: Shop, tmp_path: Path, fault: str
) -> None:
    bundle = releases.make(running.bundle, tmp_path, version="0.2.2", fault=fault)
    before = [state(running, number) for number in range(3)]
    untouched = [running.pid(1), running.pid(2)]
    with load(running.fleet) as client:
        with pytest.raises(PlaybookError) as failed:
            upgrade(running, bundle, throughline_health_timeout=6)
        statuses = answers(client)
    output = failed.value.output
    assert f"Agent {named(bundle, '0.2.2')} " in output
    assert f"Rolled back: {named(running.bundle, version(running, 0))} serves again" in output
    if fault == "unhealthy":
        assert "doctor: headers is off: this release cannot attach it" in output
    assert recap(output)[f"{NAME}1"]["failed"] == 1
    assert recap(output)[f"{NAME}2"]["changed"] == recap(output)[f"{NAME}3"]["changed"] == 0
    assert [state(running, number) for number in range(3)] == before
    assert [running.pid(1), running.pid(2)] == untouched
    assert len(statuses) > 23
    assert set(statuses) == {"200"}
    assert_joined(running, fault)
