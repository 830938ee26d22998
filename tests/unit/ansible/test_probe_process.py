"""The units of the process that opens uprobes: they come, go, and follow the release."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.paths import CHECKOUT
from tests.fixtures.plugins import plugin

NAMES = ("throughline-probes.service", "throughline-probes.socket")


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ...]:
    """Where the units are on this host."""
    folder = tmp_path / "system"
    folder.mkdir()
    paths = tuple(folder / name for name in NAMES)
    monkeypatch.setattr(plugin("module_utils.plan"), "PROBE_UNITS", paths)
    monkeypatch.setattr(plugin("module_utils.unit"), "PROBE_SERVICE", paths[0])
    monkeypatch.setattr(plugin("module_utils.unit"), "PROBE_SOCKET", paths[1])
    return paths


def planned(base: Path, release: str, wanted: bool | None) -> dict[Path, str | None]:
    plan = plugin("module_utils.plan")
    request = plan.Request(
        state="release",
        release=release,
        groups=None,
        config="",
        base=base,
        config_changed=False,
        check_mode=False,
        probe_process=wanted,
    )
    found: dict[Path, str | None] = plan.probe_units(request, release)
    return found


def test_the_units_are_those_of_the_release(tmp_path: Path, units: tuple[Path, ...]) -> None:
    folder = tmp_path / "releases/new/systemd"
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_text(f"new {name}", encoding="utf-8")
    new = dict(zip(units, (f"new {name}" for name in NAMES), strict=True))
    none = dict.fromkeys(units)
    assert planned(tmp_path, "new", True) == new
    assert planned(tmp_path, "new", False) == none
    assert planned(tmp_path, "new", None) == none, "upgrade.yml leaves a host as it is"
    assert planned(tmp_path, "old", True) == none, "that release does not know the process"
    for path in units:
        path.write_text("present", encoding="utf-8")
    assert planned(tmp_path, "new", None) == new
    assert planned(tmp_path, "old", None) == none


@pytest.mark.parametrize(
    ("unit", "current", "renewed"),
    [("text", "one", False), ("other", "one", True), (None, "one", True), ("text", "two", True)],
)
def test_the_process_is_renewed_with_its_unit_and_its_release(
    units: tuple[Path, ...], unit: str | None, current: str, renewed: bool
) -> None:
    plan = plugin("module_utils.plan").Plan(
        action="none",
        release=current,
        files=dict.fromkeys(units, unit),
        files_before=dict.fromkeys(units, "text"),
        links={"current": current},
        links_before={"current": "one"},
        needs_daemon_reload=False,
        enabled=True,
    )
    assert plan.renews_probe_process is renewed
    assert plan.changes is renewed


@pytest.mark.parametrize("installed", [True, False])
def test_the_socket_listens_where_its_unit_is(units: tuple[Path, ...], installed: bool) -> None:
    if installed:
        units[1].touch()
    told: list[list[str]] = []

    def run(command: list[str]) -> tuple[int, str, str]:
        told.append(command)
        return (5 if "stop" in command else 0), "", "not loaded"

    plugin("module_utils.unit").renew_probe_process(run)
    stop = ["systemctl", "stop", "throughline-probes.socket", "throughline-probes.service"]
    start = ["systemctl", "start", "throughline-probes.socket"]
    assert told == ([stop, start] if installed else [stop])


def test_the_agents_unit_asks_for_the_socket() -> None:
    """It needs no [Install] section, and no enabling by a role or a package."""
    folder = CHECKOUT / "agent/systemd"
    agent = (folder / "throughline.service").read_text(encoding="utf-8").splitlines()
    assert "Wants=throughline-probes.socket" in agent
    ours = {name: (folder / name).read_text(encoding="utf-8") for name in NAMES}
    assert not [name for name, text in ours.items() if "[Install]" in text]
    path = plugin("modules.throughline_residue").PATHS
    assert "/run/throughline-probes.socket" in path
    assert "ListenSequentialPacket=/run/throughline-probes.socket\n" in ours[NAMES[1]]
    granted = [line for line in ours[NAMES[0]].splitlines() if line.startswith("Capab")]
    assert granted == ["CapabilityBoundingSet=CAP_SYS_ADMIN"]


@pytest.mark.skipif(os.geteuid() != 0, reason="a trial runs as root")
def test_a_trial_has_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial: Any = plugin("module_utils.trial")
    monkeypatch.setattr(trial, "PLACE", tmp_path)
    release = tmp_path / "release"
    (release / "bin").mkdir(parents=True)
    (release / "lib").mkdir()
    # Instead of a release's Python: says what it was started with, then answers one connection.
    (release / "bin/python").write_text(
        """#!/usr/bin/python3
import json, socket, sys
caps = [line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")]
connection, _ = socket.socket(fileno=0).accept()
connection.send(json.dumps([sys.argv[1:], caps]).encode())
""",
        encoding="utf-8",
    )
    (release / "bin/python").chmod(0o755)
    with (
        trial.probing(release, seconds=7) as variables,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection,
    ):
        connection.settimeout(20)
        connection.connect(variables["THROUGHLINE_PROBES_SOCKET"])
        words, caps = json.loads(connection.recv(4096))
    assert words == [str(release / "lib/opener.py"), str(trial.NOBODY), "7"]
    assert int(caps[0], 16) == 1 << 21
