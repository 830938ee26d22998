"""The host is the platform of the table, and check.yml says what is possible on it."""

from __future__ import annotations

from typing import Any

from machine import Machine


def test_host_is_the_platform(
    machine: Machine, record: dict[str, Any], seen: dict[str, Any]
) -> None:
    bare, platform = machine.bare(), machine.platform
    for key in ("kernel", "userland", "systemd", "lockdown", "cgroup", "btf"):
        record[key] = seen[key] = bare[key]
    seen["command_line"] = bare["command_line"]
    mounted = dict(bare["mounts"])
    assert bare["kernel"].startswith(platform.kernel)
    assert bare["cgroup"] == platform.cgroup
    assert mounted.get(platform.cgroup2) == "cgroup2"
    assert set(platform.unmounted) & set(mounted) == set()
    assert bare["lockdown"] == (None if platform.unmounted else platform.lockdown)
    assert bare["running"] == "running", bare["failed"]
    assert bare["files"] == []


def test_check_says_what_is_possible(
    machine: Machine, record: dict[str, Any], seen: dict[str, Any]
) -> None:
    host = machine.report()
    words = {name: group["word"] for name, group in host["groups"].items()}
    seen.update(mode=host["mode"], words=words, reasons=host["reasons"])
    record["mode"] = host["mode"]
    assert host["host"]["kernel"] == machine.bare()["kernel"], "a report of another run"
    assert host["host"]["lockdown"] == machine.platform.lockdown
    assert host["mode"] == machine.platform.mode
    for name in machine.platform.groups:
        assert words[name] == machine.platform.word(name), host["groups"][name]
    go_write = host["groups"]["go_write"]
    if "go" in machine.platform.on and go_write["word"] == "off":
        assert go_write["why"].startswith(f"lockdown is {machine.platform.lockdown}"), go_write
    said = " ".join(f"{entry['why']} {entry['fix']}" for entry in host["reasons"])
    assert [reason for reason in machine.platform.refused if reason not in said] == []
