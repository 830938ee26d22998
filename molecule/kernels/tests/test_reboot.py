"""After a reboot the agent and the services run again without help."""

from __future__ import annotations

from typing import Any

import pytest
from machine import Machine
from test_chain import SPANS, check_traces
from tests.vms.expected import GROUPS

pytestmark = [pytest.mark.usefixtures("accepted"), pytest.mark.timeout(600)]


@pytest.mark.proves(*GROUPS)
def test_agent_and_mounts_come_back(machine: Machine, seen: dict[str, Any]) -> None:
    before = machine.look()
    seconds, seen["resets"] = machine.reboot()
    seen["seconds"] = round(seconds, 1)
    after = machine.look(healthy=300)
    assert after["boot_id"] != before["boot_id"]
    assert after["running"] == "running", after["failed"]
    kinds = ("securityfs", "cgroup2", "bpf")
    assert {tuple(mount) for mount in after["mounts"] if mount[1] in kinds} == {
        tuple(mount) for mount in before["mounts"] if mount[1] in kinds
    }
    assert after["agent"]["status"]["healthy"] is True
    assert after["agent"]["unit"]["NRestarts"] == "0"
    states = {name: group["state"] for name, group in after["agent"]["doctor"]["groups"].items()}
    assert {name: states[name] for name in machine.platform.groups} == machine.platform.groups


@pytest.mark.proves(*GROUPS)
def test_requests_are_traced_again(machine: Machine) -> None:
    check_traces(machine, machine.send("rebooted", spans=SPANS))
