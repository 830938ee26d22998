"""The agent after its rollout: groups, mounts, privileges."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
from machine import REPOSITORY, Look, Machine
from tests.vms.expected import GROUPS, Platform

pytestmark = pytest.mark.usefixtures("accepted")

# include/uapi/linux/capability.h
BITS = {
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_LEASE": 28,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
# The overall exposure level of `systemd-analyze security`. Measured: 2.5 with the capabilities of
# the network groups, 2.8 with CAP_SYS_PTRACE, 3.0 with CAP_SYS_ADMIN too (consent or go_write).
EXPOSURE_CAP = {"network": 2.6, "tls": 2.9, "consent": 3.1}


def without_go_write(platform: Platform) -> str:
    """The beginning of the reason why go_write is off."""
    if "go_write" not in platform.wanted:
        return "instrumentation.go_write is off"
    return "go is off" if "go" not in platform.on else f"lockdown is {platform.lockdown}"


@pytest.fixture(scope="module")
def look(machine: Machine) -> Look:
    """The host some time after converge.yml."""
    return machine.look(healthy=60)


@pytest.mark.proves(*GROUPS)
def test_groups_are_in_the_expected_state(
    machine: Machine, look: Look, record: dict[str, Any], seen: dict[str, Any]
) -> None:
    doctor, status = look["agent"]["doctor"], look["agent"]["status"]
    record["groups"] = seen["doctor"] = doctor["groups"]
    record["doctor_mode"] = doctor["mode"]
    assert {name: doctor["groups"][name]["state"] for name in machine.platform.groups} == dict(
        machine.platform.groups
    )
    for name, group in doctor["groups"].items():
        assert status["groups"][name]["state"] == group["state"], name
        assert bool(group["reason"]) == (group["state"] == "off"), f"{name}: {group}"
    if "go_write" not in machine.platform.on:
        reason = doctor["groups"]["go_write"]["reason"]
        assert reason.startswith(without_go_write(machine.platform)), reason
    if "tls" not in machine.platform.on:
        assert "CVE-2025-38466" in doctor["groups"]["tls"]["reason"]
        assert "throughline_allow_sys_admin" in doctor["groups"]["tls"]["fix"]
    assert doctor["mode"] == machine.platform.doctor_mode
    assert status["healthy"] is True
    assert str(status["pid"]) == look["agent"]["unit"]["MainPID"]
    assert status["attached"]["programs"] != []


@pytest.mark.proves("packets")
def test_every_interface_has_who_writes_options(
    machine: Machine, look: Look, seen: dict[str, Any]
) -> None:
    seen["packets"] = packets = look["agent"]["status"]["packets"]
    by = "tcx" if machine.has_tcx else "clsact"
    places = {(place["interface"], place["by"]) for place in packets["older_connections"]}
    assert places == {("lo", by), ("eth0", by)}
    assert packets["refused"] == {}
    assert packets["new_connections"] != []


def test_doctor_knows_the_host(machine: Machine, look: Look) -> None:
    host = look["agent"]["doctor"]["host"]
    assert host["kernel"] == look["kernel"]
    assert host["lockdown"] == machine.platform.lockdown
    assert host["cgroup_layout"] == machine.platform.cgroup
    assert host["cgroup2"] == machine.platform.cgroup2
    assert host["securityfs"] is True
    assert host["btf"] is True
    assert host["bpffs"] == "/run/throughline-bpf"


def test_kernel_file_systems_are_mounted(machine: Machine, look: Look) -> None:
    mounts = dict(look["mounts"])
    assert mounts["/sys/kernel/security"] == "securityfs"
    assert mounts[machine.platform.cgroup2] == "cgroup2"
    assert mounts["/run/throughline-bpf"] == "bpf"
    ours = [file for file in look["files"] if file.endswith("/throughline-securityfs.service")]
    assert bool(ours) == ("/sys/kernel/security" in machine.platform.unmounted), ours


def wanted_capabilities(machine: Machine) -> int:
    """The bits of the capabilities that the groups which are on here need."""
    table = runpy.run_path(str(REPOSITORY / "plugins/module_utils/groups.py"))["GROUPS"]
    wanted = {name for group in machine.platform.on for name in table[group].capabilities}
    if machine.platform.allow_sys_admin:
        wanted.add("CAP_SYS_ADMIN")
    if {"tls", "go"} & set(machine.platform.on):
        wanted.add("CAP_LEASE")
    return sum(1 << BITS[name] for name in wanted)


def test_capabilities_are_exactly_the_computed_ones(
    machine: Machine, look: Look, seen: dict[str, Any]
) -> None:
    process = look["agent"]["process"]
    sets = {name: int(process[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")}
    seen.update({name: f"{bits:x}" for name, bits in sets.items()})
    assert sets == dict.fromkeys(sets, wanted_capabilities(machine))
    assert process["NoNewPrivs"] == "1"
    assert "throughline" in look["users"]
    user = machine.run("id -u throughline")
    assert process["Uid"].split() == [user] * 4
    assert user != "0"


def test_uprobes_come_by_the_expected_way(
    machine: Machine, look: Look, seen: dict[str, Any]
) -> None:
    """The process that opens them is there where the agent may not, and ends when nobody asks."""
    way = seen["uprobes"] = machine.platform.uprobes
    assert look["agent"]["status"]["uprobes"] == way
    # The process has a cgroup while it runs.
    files = [path for path in look["files"] if "-probes" in path and not path.startswith("/sys/")]
    if way != "process":
        assert files == []
        return
    assert files == [
        "/etc/systemd/system/throughline-probes.service",
        "/etc/systemd/system/throughline-probes.socket",
        "/run/throughline-probes.socket",
    ]
    show = "systemctl show --property=%s --value throughline-probes.%s"
    assert machine.run(show % ("CapabilityBoundingSet", "service")) == "cap_sys_admin"
    assert machine.run(show % ("ActiveState", "socket")) == "active"
    ended = f"until [ $({show % ('ActiveState', 'service')}) = inactive ]; do sleep 1; done"
    machine.run(f"timeout 240 sh -c '{ended}'", seconds=300)
    assert machine.run(show % ("Result", "service")) == "success"


def test_exposure_is_below_the_cap(
    machine: Machine, look: Look, record: dict[str, Any], seen: dict[str, Any]
) -> None:
    record["exposure"] = seen["exposure"] = look["exposure"]
    assert look["exposure"] is not None, "systemd-analyze gave no overall level"
    consent = machine.platform.allow_sys_admin or "go_write" in machine.platform.on
    granted = "consent" if consent else "network"
    if granted == "network" and "tls" in machine.platform.on:
        granted = "tls"
    assert look["exposure"] <= EXPOSURE_CAP[granted]
