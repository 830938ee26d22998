"""check.yml on real hosts: its verdict is tried, and nothing of the trial stays."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import cgroup
from tests.fleet import hosts, playbook, releases
from tests.fleet.hosts import Fleet
from throughline.bpf import fionread

BUNDLES = sorted(releases.DIST.glob(releases.PATTERN))

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="fleet hosts need root"),
    pytest.mark.skipif(not BUNDLES, reason="no agent bundle in dist/: run make bundle"),
]

NAME = "check"
WANTED = ("observe", "headers", "packets", "tls", "go", "java", "python", "proxies", "ruby", "node")
# Files, mounts, units, cgroups, users, links and TC filters of a host, without those of logins.
SNAPSHOT = r"""
find / -xdev \( -path /proc -o -path /sys -o -path /var/log -o -path /root/.ansible/tmp \
    -o -path /var/lib/systemd/timers -o -path /var/tmp/systemd-private-* \) -prune -o -print | sort
find /run /tmp /dev/shm -not -path '/run/systemd/*' -not -path '/run/user/*' \
    -not -path '/run/log/*' -not -path '/run/sshd*' 2>/dev/null | sort
ls -A /root/.ansible/tmp 2>/dev/null
cut -d' ' -f5- /proc/self/mountinfo | grep -v ' /run/user/' | sort
systemctl list-units --all --plain --no-legend --type=service,mount,slice | awk '{print $1, $4}' \
    | grep -v user
find /sys/fs/cgroup -type d -not -path '*/user.slice/*' | sort
cat /etc/passwd /etc/group
tc filter show dev lo egress 2>/dev/null
pgrep -f '[l]ib/start.py' | wc -l
true
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Two bare hosts. A first run of Ansible makes its own directories there."""
    with hosts.fleet(NAME, count=2) as running:
        playbook.run(
            running, playbook.CHECK, quiet=True, throughline_report_directory="/dev/shm/throughline"
        )
        shutil.rmtree("/dev/shm/throughline")
        yield running


def check(
    fleet: Fleet, folder: Path, *options: str, **variables: object
) -> tuple[str, dict[str, Any]]:
    """The output of check.yml, and its report on each host."""
    output = playbook.run(
        fleet,
        playbook.CHECK,
        *options,
        quiet=True,
        **{"throughline_report_directory": str(folder), **variables},
    )
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return output, {host["name"]: host for host in report["hosts"]}


def words(host: dict[str, Any]) -> dict[str, str]:
    return {name: host["groups"][name]["word"] for name in WANTED}


def snapshot(fleet: Fleet) -> list[list[str]]:
    """The state of each host, and what is attached to its cgroups, as seen from outside."""
    found = []
    for host in fleet.hosts:
        lines = fleet.run(host, SNAPSHOT).stdout.splitlines()
        attached = subprocess.run(
            ["bpftool", "cgroup", "tree", str(host.cgroup)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        found.append(lines + [line for line in attached if " tl_" in line])
    return found


def assert_nothing_stays(fleet: Fleet, before: list[list[str]]) -> None:
    for one, other in zip(before, snapshot(fleet), strict=True):
        assert list(difflib.unified_diff(one, other, n=0, lineterm="")) == []


@pytest.mark.parametrize(("options", "pipelining"), [((), True), (("--check",), False)])
def test_a_bare_host_is_tried_and_nothing_stays(
    fleet: Fleet, bundle: Path, tmp_path: Path, options: tuple[str, ...], pipelining: bool
) -> None:
    """Without pipelining, Ansible keeps files on the hosts during the run."""
    before = snapshot(fleet)
    output, found = check(
        fleet,
        tmp_path,
        *options,
        throughline_bundle=str(bundle),
        ansible_pipelining=pipelining,
    )
    for host in fleet.hosts:
        assert words(found[host.name]) == dict.fromkeys(WANTED, "works"), found[host.name]
        assert found[host.name]["source"] == "trial"
        assert found[host.name]["mode"] in ("network", "write")
        assert found[host.name]["tried_version"] == bundle.name.split("-")[1]
    assert_nothing_stays(fleet, before)
    assert "changed=0" in output and "changed=1" not in output
    assert "of release" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_without_a_bundle_nothing_is_claimed(fleet: Fleet, tmp_path: Path) -> None:
    before = snapshot(fleet)
    output, found = check(fleet, tmp_path, throughline_bundle=str(tmp_path / "none"))
    for host in fleet.hosts:
        assert words(found[host.name]) == dict.fromkeys(WANTED, "untried")
        assert found[host.name]["untried"].startswith(f"Found no bundle at {tmp_path}/none")
        assert {group["state"] for group in found[host.name]["groups"].values()} <= {
            "untried",
            "on",  # go_write is not wanted
            "off",
        }
    assert "nothing was tried: Found no bundle at" in output
    assert "network?" in output or "write?" in output
    assert "ready" not in output
    assert_nothing_stays(fleet, before)


def test_what_the_release_cannot_do_is_off_with_the_reason(
    fleet: Fleet, bundle: Path, tmp_path: Path
) -> None:
    """A kernel that refuses a program of one group."""
    broken = releases.make(bundle, tmp_path, version="0.2.0", fault="unhealthy")
    before = snapshot(fleet)
    output, found = check(fleet, tmp_path, throughline_bundle=str(broken))
    for host in fleet.hosts:
        assert words(found[host.name]) == {**dict.fromkeys(WANTED, "works"), "headers": "off"}
        headers = found[host.name]["groups"]["headers"]
        assert headers["why"] == "this release cannot attach it"
        assert (found[host.name]["mode"], headers["possible"]) == ("observe", False)
        assert f"{host.name}: headers off: this release cannot attach it -> report it" in output
    assert_nothing_stays(fleet, before)


def set_for_agents(fleet: Fleet, words: str) -> None:
    """Sets a variable for the next logins, and so for the trial; "" removes it."""
    for host in fleet.hosts:
        line = f"THROUGHLINE_TEST_REFUSE={words}" if words else ""
        fleet.run(host, f"echo '{line}' > /etc/environment")
        for path in (fleet.state / "mux").iterdir():  # open connections keep the old environment
            command = [*fleet.ssh, "-o", f"ControlPath={path}", "-O", "exit", host.name]
            subprocess.run(command, capture_output=True, check=False)


@pytest.mark.parametrize(
    ("refused", "off"),
    [
        ("tl_send", {"headers"}),
        pytest.param("sockops", {"headers"}, marks=pytest.mark.long),
        ("tl_read", set()),
        pytest.param("tl_ssl_read", {"tls"}, marks=pytest.mark.long),
        ("cgroup_skb", set(WANTED)),
    ],
)
def test_what_the_kernel_refuses_is_off_and_the_rest_works(
    fleet: Fleet, bundle: Path, tmp_path: Path, refused: str, off: set[str]
) -> None:
    if refused == "tl_tick" and fionread.is_broken():
        off = {"headers"}  # no other program finds the processes for which FIONREAD is wrong
    before = snapshot(fleet)
    set_for_agents(fleet, refused)
    try:
        _output, found = check(fleet, tmp_path, throughline_bundle=str(bundle))
    finally:
        set_for_agents(fleet, "")
    for host in fleet.hosts:
        groups = found[host.name]["groups"]
        assert {name for name in WANTED if groups[name]["word"] == "off"} == off, groups
        assert all(groups[name]["why"] and groups[name]["fix"] for name in off)
        assert {groups[name]["word"] for name in WANTED if name not in off} <= {"works"}
        assert off or f"without {refused}: no parent" in groups["observe"]["why"]
    assert_nothing_stays(fleet, before)


def test_a_trial_that_cannot_be_made_says_so(fleet: Fleet, tmp_path: Path) -> None:
    damaged = tmp_path / "throughline-0.1.0-linux-x86_64.tar.gz"
    damaged.write_bytes(b"no archive")
    before = snapshot(fleet)
    _output, found = check(fleet, tmp_path, throughline_bundle=str(damaged))
    for host in fleet.hosts:
        assert words(found[host.name]) == dict.fromkeys(WANTED, "untried")
        assert found[host.name]["untried"].startswith("the trial failed: not a readable bundle")
    assert_nothing_stays(fleet, before)


def test_an_installed_agent_answers_itself(fleet: Fleet, bundle: Path, tmp_path: Path) -> None:
    one = fleet.hosts[0]
    playbook.run(
        fleet,
        playbook.SITE,
        quiet=True,
        throughline_hosts=one.name,
        throughline_bundle=str(bundle),
        ansible_pipelining=False,
    )
    assert fleet.run(one, "ls -A /root/.ansible/tmp").stdout == ""
    _output, found = check(fleet, tmp_path, throughline_bundle=str(bundle))
    assert found[one.name]["source"] == "doctor"
    assert words(found[one.name]) == dict.fromkeys(WANTED, "on")
    assert set(words(found[fleet.hosts[1].name]).values()) == {"works"}
    fleet.run(one, "systemctl stop throughline")
    _output, found = check(fleet, tmp_path, throughline_bundle=str(bundle))
    assert set(words(found[one.name]).values()) == {"works"}, "it serves nothing now"


def test_a_host_that_is_away_is_a_line_of_the_report(
    fleet: Fleet, bundle: Path, tmp_path: Path
) -> None:
    one, two = fleet.hosts
    cgroup.kill(one.cgroup)
    output, found = check(fleet, tmp_path, throughline_bundle=str(bundle))
    assert found[one.name]["mode"] == "unknown"
    assert f"{one.name}: unreachable: " in output
    assert set(words(found[two.name]).values()) == {"works"}
