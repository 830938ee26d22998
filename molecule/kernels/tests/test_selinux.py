"""Where SELinux is enforcing: every file has its label, and nothing of the agent is denied."""

from __future__ import annotations

from typing import Any

import pytest
from machine import Machine

pytestmark = pytest.mark.usefixtures("accepted", "also")

FOLDERS = ("/opt/throughline", "/etc/throughline", "/etc/systemd/system", "/var/lib/throughline")


def test_files_have_the_labels_of_the_policy(machine: Machine) -> None:
    assert machine.run("getenforce") == "Enforcing"
    assert machine.run(f"restorecon -R -n -v {' '.join(FOLDERS)}") == ""
    labelled = machine.run("stat -L -c %C /opt/throughline/current/bin/throughline")
    assert labelled.split(":")[2] == "bin_t"


def test_nothing_of_the_agent_is_denied(machine: Machine, seen: dict[str, Any]) -> None:
    denied = machine.run("journalctl -b --no-pager --grep 'avc: +denied' || :").splitlines()
    seen["denied"] = len(denied)
    # Debian's policy denies things to systemd's own programs at each boot: so this would see them
    assert any("avc:" in line for line in denied)
    assert [line for line in denied if "throughline" in line] == []
    domain = machine.run("ps -o label= -p $(systemctl show --value -p MainPID throughline)")
    seen["domain"] = domain
    assert domain.split(":")[2] != "init_t", "the program's label does not make a domain"
