"""Upgrades on real hosts: those that succeed, those that are rolled back, and rollback.yml."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fleet import playbook, releases, shop
from tests.fleet.playbook import PlaybookError
from tests.fleet.rollout import Shop, answers, load, rolled_out

BUNDLES = sorted(releases.DIST.glob(releases.PATTERN))

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="fleet hosts need root"),
    pytest.mark.skipif(not BUNDLES, reason="no agent bundle in dist/: run make bundle"),
]

NAME = "upgrade"
UNIT = "/etc/systemd/system/throughline.service"
# The files that an upgrade may change on a host, and that a rollback must restore.
STATE = (
    "readlink /opt/throughline/current /opt/throughline/previous;"
    f" sha256sum {UNIT} {UNIT}.d/*.conf /etc/throughline/config.yaml;"
    " stat -c '%a %U:%G' /etc/throughline/config.yaml"
)
FIRST = releases.newest().name.split("-")[1] if BUNDLES else ""
ATTACHED = "group observe is on"  # the agent's log line at each start


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A copy of the bundle: a build during the tests does not change it."""
    bundle = Path(shutil.copy(releases.newest(), tmp_path_factory.mktemp("dist")))
    # Without HTTPS: the probes are not pinned, so no agent traces it during an upgrade.
    with rolled_out(NAME, bundle, secure=False) as rolled:
        yield rolled


def upgrade(running: Shop, bundle: Path, *options: str, **variables: object) -> str:
    """Runs playbooks/upgrade.yml, by default on all hosts at once, and returns its output."""
    defaults = {"throughline_bundle": str(bundle), "throughline_serial": ["100%"]}
    return playbook.run(
        running.fleet, playbook.UPGRADE, *options, quiet=True, **{**defaults, **variables}
    )


def roll_back(running: Shop) -> str:
    """Runs playbooks/rollback.yml on all hosts at once and returns its output."""
    return playbook.run(running.fleet, playbook.ROLLBACK, quiet=True, throughline_serial=["100%"])


def state(running: Shop, number: int) -> str:
    return running.fleet.run(running.fleet.hosts[number], STATE, check=False).stdout


def version(running: Shop, number: int) -> str:
    """The version of the agent that serves on a host."""
    command = "/opt/throughline/current/bin/throughline --version"
    return running.fleet.run(running.fleet.hosts[number], command).stdout.split()[-1]


def named(bundle: Path, of_version: str) -> str:
    """The name of a release in messages."""
    return f"{of_version} (release {hashlib.sha256(bundle.read_bytes()).hexdigest()[:12]})"


def starts(running: Shop, number: int) -> int:
    """The number of times that the agent has attached its programs since the host's boot."""
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
    assert running.problems(requests) == []


def test_without_a_previous_release_no_host_is_touched(running: Shop) -> None:
    before = [(state(running, number), running.pid(number)) for number in range(3)]
    with pytest.raises(PlaybookError) as failed:
        roll_back(running)
    assert "required a previous release to go back to. Remedy: " in failed.value.output
    assert all(host["failed"] == 1 for host in recap(failed.value.output).values())
    assert [(state(running, number), running.pid(number)) for number in range(3)] == before


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
        upgrade(running, bundle, throughline_serial=[1, 1, 1])
    assert "Found a configuration that 0.2.1 (release " in refused.value.output
    assert recap(refused.value.output)[f"{NAME}1"]["failed"] == 1
    assert [(state(running, number), running.pid(number)) for number in range(3)] == before


@pytest.mark.parametrize(
    "fault", ["unhealthy", *(pytest.param(f, marks=pytest.mark.long) for f in ("dies", "hangs"))]
)
def test_a_host_goes_back_and_the_others_are_not_touched(
    running: Shop, tmp_path: Path, fault: str
) -> None:
    bundle = releases.make(running.bundle, tmp_path, version="0.2.2", fault=fault)
    before = [state(running, number) for number in range(3)]
    untouched = [running.pid(1), running.pid(2)]
    with load(running.fleet) as client:
        with pytest.raises(PlaybookError) as failed:
            upgrade(running, bundle, throughline_serial=[1, 1, 1], throughline_health_timeout=6)
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


def test_a_release_of_another_abi_gives_its_pins_back(running: Shop, tmp_path: Path) -> None:
    bundle = releases.make(
        running.bundle, tmp_path, version="0.2.3", fault="unhealthy", service=["Nice=1"], abi=99
    )
    before = state(running, 0), pins(running, 0)
    with pytest.raises(PlaybookError) as failed:
        upgrade(running, bundle, throughline_hosts=f"{NAME}1")
    assert "Rolled back: " in failed.value.output
    assert (state(running, 0), pins(running, 0)) == before
    assert len(before[1]) == 1
    assert_joined(running, "abi")


def pins(running: Shop, number: int) -> list[str]:
    """The ABIs whose programs are pinned on a host."""
    command = "ls /run/throughline-bpf | grep abi"
    return running.fleet.run(running.fleet.hosts[number], command).stdout.split()


def test_site_brings_configuration_and_capabilities_back(running: Shop, tmp_path: Path) -> None:
    bundle = releases.make(running.bundle, tmp_path, version="0.2.4", fault="crashes")
    before = [state(running, number) for number in range(3)]
    with pytest.raises(PlaybookError) as failed:
        running.rollout(
            interval=7,
            throughline_bundle=str(bundle),
            throughline_serial=[1, 1, 1],
        )
    assert "Rolled back: " in failed.value.output
    assert recap(failed.value.output)[f"{NAME}1"]["failed"] == 1
    assert [state(running, number) for number in range(3)] == before
    assert_joined(running, "site")


def test_a_changed_configuration_is_one_reload(running: Shop) -> None:
    before = [(running.pid(number), starts(running, number)) for number in range(3)]
    running.rollout(interval=2)
    after = [(running.pid(number), starts(running, number)) for number in range(3)]
    assert after == [(pid, count + 1) for pid, count in before]
    output = running.rollout(interval=2)
    assert all(host["changed"] == 0 for host in recap(output).values()), output
    assert [(running.pid(number), starts(running, number)) for number in range(3)] == after


def test_a_good_release_takes_over_without_a_gap(running: Shop, tmp_path: Path) -> None:
    bundle = releases.make(running.bundle, tmp_path, version="0.3.0", service=["Nice=1"])
    configuration = "cat /etc/throughline/config.yaml"
    before = running.fleet.run(running.fleet.hosts[0], configuration).stdout
    with load(running.fleet) as client, watched(running) as unjoined:
        output = upgrade(running, bundle)
        statuses = answers(client)
    assert set(statuses) == {"200"}
    assert not unjoined, (unjoined, running.status(2, since=time.time())["counters"])
    assert all(host["changed"] == 2 for host in recap(output).values()), output
    assert [version(running, number) for number in range(3)] == ["0.3.0"] * 3
    assert running.fleet.run(running.fleet.hosts[0], configuration).stdout == before
    assert_joined(running, "better")
    output = upgrade(running, bundle)
    assert all(host["changed"] == 0 for host in recap(output).values()), output


@contextmanager
def watched(running: Shop) -> Iterator[list[str]]:
    """Sends one request after the other during the block. Lists those that lost their trace.

    Tasks of Python are told by uprobes, which end with the agent: FastAPI is left out.
    """
    unjoined: list[str] = []
    ended = threading.Event()

    def watch() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            cart = f"watched{number}"
            own = ("-H", f"traceparent: {shop.TRACEPARENT}")
            (answer,) = shop.curl(running.fleet, [cart], *own, past_fastapi=True)
            arrived = shop.received(answer).get("traceparent", ())
            if [value[:36] for value in arrived] != [shop.TRACEPARENT[:36]]:
                unjoined.append(f"{cart}: {arrived}")

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield unjoined
        finally:
            ended.set()
        watching.result()


def test_a_run_that_was_cut_short_is_completed(running: Shop, tmp_path: Path) -> None:
    """The links name a release that hangs and was never healthy. A good one follows."""
    hanging = releases.make(running.bundle, tmp_path, version="0.3.1", fault="hangs")
    one = running.fleet.hosts[0]
    before = running.fleet.run(one, "readlink /opt/throughline/current").stdout
    name = hashlib.sha256(hanging.read_bytes()).hexdigest()
    place = f"/opt/throughline/releases/{name}"
    subprocess.run(
        [*running.fleet.ssh, one.name, f"mkdir {place} && tar xzf - -C {place}"],
        check=True,
        stdin=hanging.open("rb"),
    )
    # It never reports that it is ready. systemctl can wait for that, so it must not block.
    running.fleet.run(
        one,
        f"cd /opt/throughline && ln -sfn releases/{name} current"
        " && systemctl reload --no-block throughline && until grep -q"
        f" /{name}/ /proc/$(systemctl show --property=MainPID --value throughline)/cmdline;"
        " do sleep 0.1; done",
    )
    good = releases.make(running.bundle, tmp_path, version="0.3.2")
    upgrade(running, good, throughline_hosts=one.name)
    assert version(running, 0) == "0.3.2"
    assert running.fleet.run(one, "readlink /opt/throughline/previous").stdout == before
    releases_left = running.fleet.run(one, "ls /opt/throughline/releases").stdout.split()
    assert name not in releases_left
    assert len(releases_left) == 2


def test_going_back_is_done_once(running: Shop) -> None:
    before = [version(running, number) for number in range(3)]
    assert before == ["0.3.2", "0.3.0", "0.3.0"]
    with load(running.fleet) as client:
        output = roll_back(running)
        statuses = answers(client)
    assert set(statuses) == {"200"}
    assert all(host["changed"] == 1 for host in recap(output).values()), output
    after = [version(running, number) for number in range(3)]
    assert after == ["0.3.0", FIRST, FIRST]
    assert_joined(running, "back")
    output = roll_back(running)
    assert "serves since it was rolled back from 0.3.0" in output
    assert all(host["changed"] == 0 for host in recap(output).values()), output
    assert [version(running, number) for number in range(3)] == after


def test_hosts_without_the_agent_are_named_and_left_out(running: Shop, tmp_path: Path) -> None:
    bundle = releases.make(running.bundle, tmp_path, version="0.4.0")
    playbook.run(running.fleet, playbook.UNINSTALL, quiet=True, throughline_hosts=f"{NAME}3")
    output = upgrade(running, bundle, "--check")
    assert f"No agent on {NAME}3: left out." in output
    changes = {name: host["changed"] for name, host in recap(output).items()}
    assert changes == {f"{NAME}1": 2, f"{NAME}2": 2, f"{NAME}3": 0}
    with pytest.raises(PlaybookError) as failed:
        upgrade(running, bundle, throughline_hosts=f"{NAME}3")
    assert "Found no host with the agent among 1" in failed.value.output


def test_a_rollback_that_fails_is_said(running: Shop, tmp_path: Path) -> None:
    bundle = releases.make(running.bundle, tmp_path, version="0.4.1", fault="crashes")
    one = running.fleet.hosts[1]
    before = state(running, 1)
    running.fleet.run(one, "rm /opt/throughline/current/lib/start.py")
    with pytest.raises(PlaybookError) as failed:
        upgrade(running, bundle, throughline_hosts=one.name)
    assert "Agent 0.4.1 (release " in failed.value.output
    assert "THE ROLLBACK FAILED TOO: " in failed.value.output
    assert "has failed (exit-code, exit code 2)" in failed.value.output
    assert "rolled_back: false" in failed.value.output
    assert state(running, 1) == before
