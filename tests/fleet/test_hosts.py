"""Hosts boot as real ones do, and nothing of them stays, however a run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.waiting import until
from tests.fleet import cgroups, host, hosts, network
from tests.fleet.hosts import Fleet

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="fleet hosts need root")

NAME = "tlt"

# Runs on a host, as root, with what every Debian 12 has.
PROBE = r"""
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
BPF, PERF_EVENT_OPEN = 321, 298  # x86_64

def check(name, result):
    print(name, "ok" if result >= 0 else os.strerror(ctypes.get_errno()))
    return result

def bpf(command, attributes):
    return libc.syscall(BPF, command, ctypes.create_string_buffer(attributes, 128), 128)

descriptor = check("map", bpf(0, struct.pack("IIII", 1, 4, 8, 4)))
os.makedirs("/run/throughline-bpf", exist_ok=True)
check("bpffs", libc.mount(b"bpf", b"/run/throughline-bpf", b"bpf", 0, None))
path = ctypes.create_string_buffer(b"/run/throughline-bpf/probe")
check("pin", bpf(6, struct.pack("QI", ctypes.addressof(path), descriptor)))
check("securityfs", libc.mount(b"securityfs", b"/sys/kernel/security", b"securityfs", 0, None))
clock = ctypes.create_string_buffer(struct.pack("IIQQ", 1, 112, 0, 0), 128)
check("perf", libc.syscall(PERF_EVENT_OPEN, clock, 0, -1, -1, 0))
check("btf", 0 if os.path.exists("/sys/kernel/btf/vmlinux") else -1)
"""


def traces_of(name: str) -> list[str]:
    """Everything on this machine that belongs to a fleet called `name`."""
    found = [str(path) for path in (hosts.STATE / name, network.namespace_path(name))]
    found = [path for path in found if Path(path).exists()]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{cgroups.PARENT}/{name}")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"{hosts.STATE}/{name}/".encode() in words:
            found.append(f"process {process.name}")
    found += [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if f"/{name}/" in line
    ]
    return found


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Two hosts for all tests of this file that change nothing."""
    with hosts.fleet(NAME, count=2) as running:
        yield running
    assert traces_of(NAME) == []


def test_each_host_is_a_machine_of_its_own(fleet: Fleet) -> None:
    one, two = fleet.hosts
    facts = "systemctl is-system-running; hostname; cat /etc/machine-id; ps -o comm= -p 1"
    assert fleet.run(one, facts).stdout.split() == ["running", "tlt1", one.machine_id, "systemd"]
    assert fleet.run(two, facts).stdout.split() == ["running", "tlt2", two.machine_id, "systemd"]
    assert one.machine_id != two.machine_id


def test_each_host_has_its_own_cgroup_tree(fleet: Fleet) -> None:
    one, two = fleet.hosts
    command = "stat -fc %T /sys/fs/cgroup; ls -d /sys/fs/cgroup/system.slice/ssh.service"
    assert fleet.run(one, command).stdout.split() == [
        "cgroup2fs",
        "/sys/fs/cgroup/system.slice/ssh.service",
    ]
    assert (one.cgroup / "payload/system.slice/ssh.service").is_dir()
    namespaces = {
        str(Path(f"/proc/{host.leader(each)}/ns/cgroup").readlink()) for each in (one, two)
    }
    assert len(namespaces | {str(Path("/proc/self/ns/cgroup").readlink())}) == 3


def test_ssh_sessions_are_not_services(fleet: Fleet) -> None:
    assert "user.slice" in fleet.run(fleet.hosts[0], "grep ^0: /proc/self/cgroup").stdout


def test_hosts_reach_each_other_and_nobody_else(fleet: Fleet) -> None:
    one, two = fleet.hosts
    for address in (two.address, two.address6):
        fleet.run(one, f"exec 3<>/dev/tcp/{address}/22; head -c 4 <&3")
    routes = fleet.run(one, "ip route; ip -6 route").stdout
    assert "default" not in routes
    assert subprocess.run(
        [*fleet.inside, "ip", "route"], check=True, capture_output=True, text=True
    ).stdout.startswith("10.77.0.0/24 dev fleet0")


def test_bpf_works_on_a_host(fleet: Fleet) -> None:
    lines = fleet.run(fleet.hosts[0], f"python3 -c '{PROBE}'").stdout.splitlines()
    names = ("map", "bpffs", "pin", "securityfs", "perf", "btf")
    assert lines == [f"{name} ok" for name in names]


def test_a_host_comes_back_from_a_reboot(fleet: Fleet) -> None:
    two = fleet.hosts[1]
    command = "cat /proc/sys/kernel/random/boot_id"
    before = fleet.run(two, command).stdout
    fleet.run(two, "touch /var/lib/kept; systemctl reboot", check=False)
    until(
        lambda: fleet.run(two, command, check=False).stdout,
        enough=lambda after: after not in ("", before),
        seconds=30,
        every=0.1,
        otherwise=lambda: host.tail(two),
    )
    fleet.run(two, "test -e /var/lib/kept")


def test_a_fleet_is_not_started_twice(fleet: Fleet) -> None:
    with pytest.raises(FileExistsError, match="down --name tlt"):
        hosts.up(NAME, count=1)
    assert fleet.run(fleet.hosts[0], "true").returncode == 0


def test_nothing_stays_after_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), hosts.fleet("tlx", count=1) as running:
        running.run(running.hosts[0], "true")
        left = traces_of("tlx")
        assert any("process" in one for one in left), "this test would not see what is left"
        raise ZeroDivisionError
    assert traces_of("tlx") == []


HOLD = """
import time
from tests.fleet.hosts import fleet
with fleet("tlk", count=1):
    print("up", flush=True)
    time.sleep(60)
"""


def run_and_signal(number: signal.Signals) -> int:
    """Starts a run that holds a fleet, ends it by a signal, and returns its exit code."""
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        return process.wait(timeout=30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_stays_after_a_signal(number: signal.Signals) -> None:
    assert run_and_signal(number) != 0
    assert traces_of("tlk") == []


def test_clean_removes_what_a_killed_run_left() -> None:
    assert run_and_signal(signal.SIGKILL) == -signal.SIGKILL
    assert traces_of("tlk") != []
    command = [sys.executable, "-m", "tests.fleet.hosts", "clean"]
    subprocess.run(command, check=True, timeout=60)
    assert traces_of("tlk") == []


def test_names_are_checked() -> None:
    for name in ("", "Demo", "../x", "a" * 10, "1a"):
        with pytest.raises(ValueError, match="fleet name"):
            hosts.down(name)
