"""The .deb on a host without Ansible, from installation to purge; the .rpm in a root."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from packages import deb, rpm, tree
from tests.fixtures.receiver import Receiver
from tests.fixtures.waiting import until
from tests.fleet import hosts, network, playbook, releases, root, shop, twohops
from tests.fleet.hosts import Fleet
from tests.fleet.playbook import PlaybookError

pytestmark = [
    pytest.mark.timeout(900),  # where others use the processors, too
    pytest.mark.skipif(os.geteuid() != 0, reason="fleet hosts need root"),
    pytest.mark.skipif(
        not sorted(releases.DIST.glob(releases.PATTERN)),
        reason="no agent bundle in dist/: run make bundle",
    ),
]

NAME = "deb"
COUNT = 7
TEXTS = {"summary": "the agent", "maintainer": "throughline <throughline@throughline.example>"}
# What of a host a package may change.
LEFT = (
    "ls -AR /opt /etc/throughline /etc/systemd/system /usr/lib/systemd/system /var/lib/throughline"
    " /run/throughline* 2>/dev/null; cat /etc/passwd /etc/group"
)
RUNNING = "cat /proc/mounts; ls -d /sys/fs/cgroup/throughline.slice 2>/dev/null; true"
CONFIG = "/etc/throughline/config.yaml"
PID = "systemctl show --property=MainPID --value throughline"
VERSION = f'{shop.AGENT} status --json | grep -o \'"version": "[^"]*"\''


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with hosts.fleet(NAME, count=1) as running:
        running.run(running.hosts[0], twohops.START)
        yield running


def install(fleet: Fleet, package: Path) -> None:
    (host,) = fleet.hosts
    command = [*fleet.ssh, host.name, "cat >/tmp/agent.deb && dpkg -i /tmp/agent.deb 2>&1"]
    with package.open("rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    fleet.run(host, "rm /tmp/agent.deb")


def make_deb(bundle: Path, output: Path) -> Path:
    return deb.build(tree.make(playbook.REPOSITORY, bundle), output, level=0, **TEXTS)


def test_the_deb_is_all_that_a_host_needs(fleet: Fleet, bundle: Path, tmp_path: Path) -> None:
    (host,) = fleet.hosts
    before, running = fleet.run(host, LEFT).stdout, fleet.run(host, RUNNING).stdout
    install(fleet, make_deb(bundle, tmp_path))
    assert fleet.run(host, "systemctl is-active throughline", check=False).stdout == "inactive\n"
    with Receiver(network.listen(NAME, port=4318)) as receiver:
        settings = f"'export: {{otlp: {{endpoint: \"{receiver.endpoint}\"}}}}'"
        fleet.run(host, f"echo {settings} >>/etc/throughline/config.yaml")
        fleet.run(host, "systemctl enable --now throughline")
        until(
            lambda: fleet.run(host, f"{shop.AGENT} status", check=False).returncode,
            enough=lambda code: code == 0,
            seconds=30,
            every=0.2,
            otherwise="the agent is not healthy",
        )
        command = f"for i in $(seq {COUNT}); do curl -sS --fail http://127.0.0.1:8080/; done"
        answers = fleet.run(host, command).stdout.split()
        spans = until(
            lambda: receiver.spans, enough=lambda found: len(found) >= 3 * COUNT, seconds=15
        )
        calls = {span.trace_id: span.span_id for span in spans if span.kind == "CLIENT"}
        assert calls == {words[1]: words[2] for words in (line.split("-") for line in answers)}
        assert len(calls) == COUNT
        pid = fleet.run(host, PID).stdout
        newer = releases.make(bundle, tmp_path, version="0.2.0")
        fleet.run(host, f"cp -p {CONFIG} /tmp/kept; echo 'nonsense: 7' >>{CONFIG}")
        with pytest.raises(AssertionError, match="a configuration that the new version refuses"):
            install(fleet, make_deb(newer, tmp_path))
        assert fleet.run(host, PID).stdout == pid
        running_release = hashlib.sha256(bundle.read_bytes()).hexdigest()
        assert running_release in fleet.run(host, f"cat /proc/{pid.strip()}/cmdline").stdout
        fleet.run(host, f"mv /tmp/kept {CONFIG}; dpkg --configure throughline")
        until(
            lambda: fleet.run(host, VERSION, check=False).stdout,
            enough=lambda said: "0.2.0" in said,
            seconds=30,
            every=0.2,
            otherwise="the new release has not taken over",
        )
        assert fleet.run(host, PID).stdout == pid, "it takes over in place"
        assert receiver.endpoint in fleet.run(host, "cat /etc/throughline/config.yaml").stdout
        assert len(fleet.run(host, "ls /opt/throughline/releases").stdout.split()) == 1
        with pytest.raises(PlaybookError) as raised:
            playbook.run(fleet, playbook.SITE, quiet=True, throughline_bundle=str(bundle))
        assert "Found the package throughline" in " ".join(raised.value.output.split())
    fleet.run(host, "dpkg --remove throughline")
    kept = fleet.run(host, "ls -A /opt; find /etc/throughline -type f; id throughline", check=False)
    assert kept.stdout == "/etc/throughline/config.yaml\n"
    owners = "stat -c '%U %G' /etc/throughline /etc/throughline/config.yaml"
    assert fleet.run(host, owners).stdout == "root root\nroot root\n"
    with pytest.raises(PlaybookError) as raised:
        playbook.run(fleet, playbook.SITE, quiet=True, throughline_bundle=str(bundle))
    assert "what apt-get remove has left" in " ".join(raised.value.output.split())
    fleet.run(host, "dpkg --purge throughline")
    assert fleet.run(host, LEFT).stdout == before
    assert fleet.run(host, RUNNING).stdout == running


def test_the_deb_leaves_an_agent_of_ansible_alone(
    fleet: Fleet, bundle: Path, tmp_path: Path
) -> None:
    (host,) = fleet.hosts
    fleet.run(
        host, "mkdir -p /opt/throughline/releases/x; ln -s releases/x /opt/throughline/current"
    )
    with pytest.raises(AssertionError, match="an agent that Ansible has installed"):
        install(fleet, make_deb(bundle, tmp_path))
    fleet.run(host, "rm -r /opt/throughline; dpkg --purge throughline")


@contextmanager
def overlay(folder: Path) -> Iterator[Path]:
    """A Debian root that a test may change."""
    for name in ("upper", "work", "root"):
        (folder / name).mkdir()
    layers = f"lowerdir={root.build()},upperdir={folder / 'upper'},workdir={folder / 'work'}"
    target = str(folder / "root")
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, target], check=True)
    try:
        yield folder / "root"
    finally:
        subprocess.run(["umount", target], check=True)


def test_the_rpm_is_installed_and_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    """By rpm itself, in a root without systemd running and without rpm's own packages."""
    made = rpm.build(tree.make(playbook.REPOSITORY, bundle), tmp_path, level=1, **TEXTS)
    with overlay(tmp_path) as place:

        def inside(command: str) -> str:
            words = ["chroot", str(place), "/bin/sh", "-c", command]
            done = subprocess.run(words, capture_output=True, text=True)
            return done.stdout + done.stderr

        before = inside(LEFT)
        tool = ["rpm", "--root", str(place), "--nodeps"]
        subprocess.run([*tool, "--install", str(made)], check=True, timeout=120)
        assert inside(f"{shop.AGENT} --version").startswith("throughline ")
        assert "throughline" in inside("id throughline")
        assert inside("stat -c '%a %G' /etc/throughline/config.yaml") == "640 throughline\n"
        assert inside("ls /opt/throughline/current/UNPACKED").startswith("/opt")
        verified = subprocess.run([*tool, "--verify", "throughline"], capture_output=True)
        assert verified.stdout == b""
        subprocess.run([*tool, "--erase", "throughline"], check=True, timeout=120)
        assert inside(LEFT) == before
