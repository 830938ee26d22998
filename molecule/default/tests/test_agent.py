"""The state of the hosts after a crash of the agent and after a reboot."""

from __future__ import annotations

import json
from typing import Any

import pytest
from testinfra.host import Host  # type: ignore[import-untyped, unused-ignore]

AGENT = "/opt/throughline/current/bin/throughline"
# CAP_NET_ADMIN 12, CAP_SYS_PTRACE 19, CAP_LEASE 28, CAP_PERFMON 38, CAP_BPF 39 (capability.h)
CAPABILITIES = 1 << 12 | 1 << 19 | 1 << 28 | 1 << 38 | 1 << 39


def process(host: Host) -> dict[str, str]:
    """/proc/PID/status of the agent."""
    pid = host.check_output("systemctl show --property=MainPID --value throughline.service")
    assert pid != "0", "the agent does not run"
    lines = host.check_output(f"cat /proc/{pid}/status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def report(host: Host, command: str) -> dict[str, Any]:
    """The JSON that a command of the agent prints; its exit code has to be 0."""
    answer: dict[str, Any] = json.loads(host.check_output(f"{AGENT} {command} --json"))
    return answer


def test_host_is_well(host: Host) -> None:
    assert host.check_output("systemctl is-system-running --wait") == "running"


def test_service(host: Host) -> None:
    service = host.service("throughline")
    assert service.is_running
    assert service.is_enabled


def test_agent_is_not_root_and_has_only_its_capabilities(host: Host) -> None:
    status = process(host)
    user = host.user("throughline")
    assert status["Uid"].split() == [str(user.uid)] * 4
    assert user.uid != 0
    assert user.shell == "/usr/sbin/nologin"
    for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == CAPABILITIES, name
    assert status["NoNewPrivs"] == "1"


def test_mounts(host: Host) -> None:
    bpffs = host.mount_point("/run/throughline-bpf")
    assert bpffs.exists
    assert bpffs.filesystem == "bpf"
    assert host.file("/run/throughline-bpf").user == "throughline"
    assert host.file("/run/throughline-bpf").mode == 0o700
    assert host.mount_point("/sys/kernel/security").filesystem == "securityfs"
    assert host.mount_point("/sys/fs/cgroup").filesystem == "cgroup2"
    assert not host.mount_point("/sys/fs/cgroup/unified").exists


def test_agent_is_healthy(host: Host) -> None:
    status = report(host, "status")
    assert status["healthy"] is True
    assert status["pid"] == int(process(host)["Pid"])
    assert status["attached"]["programs"] != []
    assert {status["groups"][name]["state"] for name in ("observe", "headers")} == {"on"}


def test_doctor(host: Host) -> None:
    doctor = report(host, "doctor")
    assert doctor["host"]["kernel"] == host.check_output("uname -r")
    assert doctor["host"]["cgroup2"] == "/sys/fs/cgroup"
    assert doctor["host"]["cgroup_layout"] == "unified"
    assert doctor["host"]["securityfs"] is True
    assert doctor["host"]["bpffs"] == "/run/throughline-bpf"
    for name in ("observe", "headers"):
        assert doctor["groups"][name]["state"] == "on", doctor["groups"][name]
    go_write = doctor["groups"]["go_write"]
    assert (go_write["state"], go_write["wanted"]) == ("off", False)
    assert go_write["reason"] == "instrumentation.go_write is off", "no variable asks for it"


def test_release(host: Host) -> None:
    current = host.file("/opt/throughline/current")
    assert current.is_symlink
    assert current.linked_to.startswith("/opt/throughline/releases/")
    assert host.run(f"{AGENT} config check /etc/throughline/config.yaml").rc == 0


@pytest.mark.parametrize("file", ["/etc/throughline/config.yaml", "/opt/throughline/current/"])
def test_agent_cannot_change_what_it_runs(host: Host, file: str) -> None:
    writable = host.run(
        f"setpriv --reuid throughline --regid throughline --clear-groups test -w {file}"
    )
    assert writable.rc == 1
