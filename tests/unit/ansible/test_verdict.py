"""The verdict on a host, from a recorded tree of its files."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fixtures.plugins import (
    ALL_CAPABILITIES,
    EVERYTHING,
    HYBRID,
    LEGACY,
    UNIFIED,
    UNLOCKED,
    answer,
    plugin,
    verdict,
)


def test_a_current_host_can_run_the_network_groups(tmp_path: Path) -> None:
    found = verdict(tmp_path)
    assert found["mode"] == "network"
    assert found["host"]["lockdown"] == "integrity"
    assert found["host"]["cgroup_layout"] == "unified"
    assert found["groups"]["observe"] == {
        "state": "on", "wanted": True, "possible": True, "reason": "", "fix": ""
    }  # fmt: skip
    go_write = found["groups"]["go_write"]
    assert (go_write["state"], go_write["wanted"], go_write["possible"]) == ("off", False, False)
    assert go_write["reason"] == "lockdown is integrity: the kernel refuses bpf_probe_write_user"
    assert "Secure Boot" in go_write["fix"]


@pytest.mark.parametrize(
    ("uprobes", "allowed", "capabilities", "state", "reason"),
    [
        ("multi", False, ALL_CAPABILITIES, "on", ""),
        ("perf", False, ALL_CAPABILITIES, "on", ""),
        (None, False, ALL_CAPABILITIES, "on", ""),  # the agent's own trial will tell
        ("admin", False, ALL_CAPABILITIES, "off", "perf-based uprobes need CAP_SYS_ADMIN"),
        ("admin", True, ALL_CAPABILITIES, "on", ""),
        ("admin", True, "000001ffffdfffff", "off", "PID 1 cannot hand out CAP_SYS_ADMIN"),
    ],
)
def test_uprobes_that_ask_for_sys_admin_need_consent(
    tmp_path: Path, uprobes: str | None, allowed: bool, capabilities: str, state: str, reason: str
) -> None:
    found = verdict(
        tmp_path,
        uprobes=uprobes,
        allow_sys_admin=allowed,
        capabilities=capabilities,
        probe_process=False,
    )
    tls = found["groups"]["tls"]
    assert (tls["state"], tls["possible"]) == (state, state == "on")
    assert tls["reason"].startswith(reason) and bool(tls["reason"]) == bool(reason)
    assert ("throughline_allow_sys_admin" in tls["fix"]) == (reason != "" and not allowed)
    assert found["mode"] == "network"
    assert found["groups"]["packets"]["state"] == "on"


@pytest.mark.parametrize(
    ("capabilities", "state", "reason"),
    [
        (ALL_CAPABILITIES, "on", ""),
        ("000001ffffdfffff", "off", "PID 1 cannot hand out CAP_SYS_ADMIN"),
    ],
)
def test_a_process_that_opens_uprobes_needs_no_consent(
    tmp_path: Path, capabilities: str, state: str, reason: str
) -> None:
    found = verdict(tmp_path, uprobes="admin", capabilities=capabilities)
    tls = found["groups"]["tls"]
    assert (tls["state"], tls["possible"], tls["reason"]) == (state, state == "on", reason)
    assert found["probe_process"] is (state == "on")
    assert ("a process of its own" in tls.get("note", "")) is (state == "on")
    assert "note" not in found["groups"]["java"]
    assert "CAP_SYS_ADMIN" not in found["unit_capabilities"]


def test_confidentiality_leaves_nothing(tmp_path: Path) -> None:
    found = verdict(tmp_path, lockdown="none integrity [confidentiality]")
    assert found["mode"] == "none"
    for name in ("observe", "headers"):
        assert found["groups"][name]["reason"].startswith("lockdown is confidentiality")
        assert "lockdown=integrity" in found["groups"][name]["fix"]


def test_without_lockdown_the_host_could_write_into_programs(tmp_path: Path) -> None:
    found = verdict(tmp_path, lockdown=UNLOCKED)
    assert found["mode"] == "write"
    assert found["groups"]["go_write"] == {
        "state": "on", "wanted": False, "possible": True, "reason": "", "fix": ""
    }  # fmt: skip
    assert plugin("module_utils.verdict").shortfall(found, "write") is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lockdown": "none [integrity] confidentiality"}, "lockdown is integrity"),
        ({"capabilities": "000001ffffdfffff"}, "PID 1 cannot hand out CAP_SYS_ADMIN"),
        ({"kernel": "5.10.0-46-amd64"}, "kernel is 5.10.0-46-amd64, but go needs 5.15"),
        ({"wanted": ["observe", "headers", "go_write"]}, "go is not wanted"),
    ],
)
def test_what_keeps_a_host_from_writing_into_programs(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    found = verdict(tmp_path, **{"lockdown": UNLOCKED, "wanted": EVERYTHING, **change})
    go_write = found["groups"]["go_write"]
    assert (go_write["state"], go_write["possible"], found["mode"]) == ("off", False, "network")
    assert go_write["reason"].startswith(reason) and go_write["fix"]
    message = plugin("module_utils.verdict").shortfall(found, "write")
    assert f"go_write is off: {go_write['reason']}. Remedy: {go_write['fix']}." in message


@pytest.mark.parametrize(
    ("wanted", "lockdown", "kernel", "states"),
    [
        ("go_write", UNLOCKED, "6.1.0-56-amd64", ("on", "on", "on")),
        ("", UNLOCKED, "6.1.0-56-amd64", ("off", "off", "on")),
        ("go_write", "none [integrity] confidentiality", "6.1.0-56-amd64", ("off", "off", "off")),
        ("go_write", UNLOCKED, "5.10.0-46-amd64", ("off", "off", "off")),
    ],
)
def test_asking_for_go_write_is_consent_where_it_can_work(
    tmp_path: Path, wanted: str, lockdown: str, kernel: str, states: tuple[str, str, str]
) -> None:
    groups = verdict(
        tmp_path,
        uprobes="admin",
        lockdown=lockdown,
        kernel=kernel,
        wanted=["observe", "headers", "tls", "go", wanted],
        probe_process=False,
    )["groups"]
    assert tuple(groups[name]["state"] for name in ("tls", "go", "go_write")) == states
    if states[0] == "off":
        assert "throughline_allow_sys_admin" in groups["tls"]["fix"]


@pytest.mark.parametrize(
    ("mounts", "layout", "cgroup2", "mode"),
    [
        (UNIFIED, "unified", "/sys/fs/cgroup", "network"),
        (HYBRID, "hybrid", "/sys/fs/cgroup/unified", "network"),
        (LEGACY, "legacy", None, "none"),
        ("", "none", None, "none"),
    ],
)
def test_cgroup_layouts(
    tmp_path: Path, mounts: str, layout: str, cgroup2: str | None, mode: str
) -> None:
    found = verdict(tmp_path, mounts=mounts)
    assert (found["host"]["cgroup_layout"], found["host"]["cgroup2"]) == (layout, cgroup2)
    assert found["mode"] == mode


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernel": "5.4.0-216-generic"}, "kernel is 5.4.0-216-generic, but 5.10 or newer"),
        ({"btf": False}, "/sys/kernel/btf/vmlinux is missing"),
        ({"booted": False}, "systemd is not PID 1"),
        ({"capabilities": "00000000a80425fb"}, "cannot hand out CAP_BPF, CAP_PERFMON"),
        ({"run": answer(systemd="239")}, "systemd is 239, but 247 or newer"),
        (
            {"options": "CONFIG_BPF_SYSCALL=y\n# CONFIG_CGROUP_BPF is not set\n"},
            "CONFIG_CGROUP_BPF",
        ),
    ],
)
def test_an_obstacle_has_a_reason_and_a_remedy(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    found = verdict(tmp_path, **change)
    assert found["mode"] == "none"
    assert reason in found["groups"]["observe"]["reason"]
    assert found["groups"]["observe"]["fix"]
    message = plugin("module_utils.verdict").shortfall(found, "network")
    assert message.startswith("Found mode 'none', required mode 'network'.")
    assert reason in message
    assert "Remedy: " in message
    assert plugin("module_utils.verdict").shortfall(found, "none") is None


def test_other_architectures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SimpleNamespace(machine="riscv64", release="6.1.0")
    monkeypatch.setattr(os, "uname", lambda: machine)
    found = verdict(tmp_path)
    assert found["mode"] == "none"
    assert found["groups"]["observe"]["reason"] == (
        "architecture is riscv64, and there are bundles for x86_64, aarch64 only"
    )
    assert found["groups"]["observe"]["fix"]


@pytest.mark.parametrize(
    ("kernel", "mode"), [("5.18.0-4-arm64", "write"), ("5.17.0-3-arm64", "none")]
)
def test_arm64_needs_a_newer_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str, mode: str
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="aarch64", release=kernel))
    found = verdict(tmp_path, lockdown=UNLOCKED, kernel=kernel)
    assert found["mode"] == mode
    old = f"kernel is {kernel}, but 5.18 or newer is required on aarch64"
    reason = "" if mode == "write" else old
    for name in ("observe", "tls", "go"):
        assert found["groups"][name]["reason"] == reason


def test_tls_needs_a_capability_that_a_container_may_lack(tmp_path: Path) -> None:
    without_ptrace = f"{int(ALL_CAPABILITIES, 16) & ~(1 << 19):016x}"
    found = verdict(tmp_path, capabilities=without_ptrace)
    assert found["mode"] == "network"
    assert found["groups"]["packets"]["state"] == "on"
    tls = found["groups"]["tls"]
    assert (tls["state"], tls["possible"]) == ("off", False)
    assert tls["reason"] == "PID 1 cannot hand out CAP_SYS_PTRACE"


@pytest.mark.parametrize("name", ["tls", "go"])
def test_an_obstacle_to_all_groups_is_said_once(tmp_path: Path, name: str) -> None:
    found = verdict(tmp_path, btf=False)
    assert found["groups"][name]["reason"] == found["groups"]["observe"]["reason"]


@pytest.mark.parametrize(
    ("kernel", "state"), [("5.10.0-46-amd64", "off"), ("5.15.0-91-generic", "on")]
)
def test_go_needs_a_newer_kernel_than_the_others(tmp_path: Path, kernel: str, state: str) -> None:
    found = verdict(tmp_path, kernel=kernel)
    assert found["mode"] == "network"
    assert found["groups"]["tls"]["state"] == "on"
    assert found["groups"]["go"]["state"] == state
    reason = "" if state == "on" else f"kernel is {kernel}, but go needs 5.15 or newer"
    assert found["groups"]["go"]["reason"] == reason


def test_what_a_distribution_has_ported_back_counts(tmp_path: Path) -> None:
    types = "BTF\0BPF_FUNC_get_func_ip\0BPF_FUNC_get_attach_cookie\0BPF_FUNC_task_pt_regs\0"
    found = verdict(tmp_path, kernel="5.14.0-503.11.1.el9_5.x86_64", types=types)
    assert found["groups"]["go"]["state"] == found["groups"]["python"]["state"] == "on"
    other = types.replace("_cookie", "_cookie_of")
    found = verdict(tmp_path, kernel="5.14.0-503.11.1.el9_5.x86_64", types=other)
    assert "go needs 5.15 or newer" in found["groups"]["go"]["reason"]


def test_without_sockmaps_a_host_can_only_observe(tmp_path: Path) -> None:
    found = verdict(tmp_path, options="CONFIG_BPF_SYSCALL=y\nCONFIG_CGROUP_BPF=y\n")
    assert found["mode"] == "observe"
    message = plugin("module_utils.verdict").shortfall(found, "network")
    assert "headers is off: the kernel is built without CONFIG_BPF_STREAM_PARSER" in message
    assert "observe is off" not in message
