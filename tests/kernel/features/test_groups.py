"""The groups packets, tls and go: on, off with a reason, adopted, withdrawn; off leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.fixtures import kernel_objects
from tests.fixtures.operated import Operated
from tests.fixtures.privileges import NETWORK, give, only
from tests.fixtures.waiting import until
from throughline.bpf import abi, libbpf, maps, peers
from throughline.config.schema import network
from throughline.features import pins

LOOPBACK = {"propagation": {"peers": ["127.0.0.0/8", "::1"]}}


def _pinned(host: Operated) -> list[str]:
    return [pin for pin in host.pins() if "tl_packets" in pin]


def _reads(host: Operated) -> bool:
    """Whether the programs look for TCP options."""
    table = libbpf.get_pinned(host.bpffs / pins.NAME / "tl_settings")
    try:
        found = maps.lookup(table, bytes(4), abi.SETTINGS.size)
        assert found is not None
        return bool(abi.Settings(*abi.SETTINGS.unpack(found)).packets)
    finally:
        os.close(table)


def _peers(host: Operated) -> set[bytes]:
    table = libbpf.get_pinned(host.bpffs / pins.NAME / "tl_peers")
    try:
        return set(maps.keys(table, 20))
    finally:
        os.close(table)


def test_both_are_on_and_status_says_where(host: Operated) -> None:
    host.configure(**LOOPBACK)
    doctor = host.command("doctor", "--json")
    assert doctor.returncode == 0, doctor.stdout
    groups = json.loads(doctor.stdout)["groups"]
    assert {groups[name]["state"] for name in ("packets", "tls")} == {"on"}
    assert host.pins() == []
    host.start_agent()
    status = host.status()
    assert status is not None and status["healthy"]
    packets = status["packets"]
    assert packets["peers"] == ["127.0.0.0/8", "::1/128"]
    assert packets["new_connections"] == [f"/{host.name}"]
    assert {place["interface"] for place in packets["older_connections"]} >= {"lo"}
    assert packets["refused"] == {}
    assert status["tls"] == {"files": []}, "no traced process has OpenSSL"
    text = host.command("status").stdout
    assert f"sock_ops at /{host.name}" in text and "TC by tcx" in text
    assert host.agent is not None
    held = kernel_objects.held_by(host.agent.pid)
    assert host.stop_agent() == 0
    assert host.pins() == [] and not kernel_objects.left(held)


def test_without_peers_nothing_is_attached_and_nobody_is_believed(host: Operated) -> None:
    host.configure(**LOOPBACK)
    host.start_agent()
    assert _pinned(host) and len(_peers(host)) == 2 and _reads(host)
    host.configure(propagation={"peers": []})
    status = host.reload()
    packets = status["groups"]["packets"]
    assert (packets["state"], packets["wanted"]) == ("off", False)
    assert packets["reason"] == "propagation.peers is empty" and packets["fix"]
    assert status["healthy"] and status["packets"] is None
    assert _pinned(host) == [] and _peers(host) == set() and not _reads(host)
    names = {program["name"] for program in status["attached"]["programs"]}
    assert not any(name.startswith("tl_packets") for name in names)
    host.configure(propagation={"packets": "off", "peers": ["10.0.0.0/8"]})
    assert host.reload()["groups"]["packets"]["reason"] == "propagation.packets is off"
    assert _peers(host) == set()
    host.configure(propagation={"peers": ["10.0.0.0/8"]})
    assert host.reload()["groups"]["packets"]["state"] == "on"
    assert _peers(host) == peers.keys([network("10.0.0.0/8")]) and _reads(host)


def test_a_killed_agents_programs_serve_and_are_adopted(host: Operated) -> None:
    host.configure(**LOOPBACK)
    host.start_agent()
    before = kernel_objects.pinned_links(host.bpffs)
    assert host.stop_agent(signal.SIGKILL) == -signal.SIGKILL
    assert _pinned(host)
    doctor = host.command("doctor", "--json")
    assert json.loads(doctor.stdout)["groups"]["packets"]["state"] == "on"
    assert kernel_objects.pinned_links(host.bpffs) == before, "a trial disturbs nothing"
    host.start_agent()
    after = kernel_objects.pinned_links(host.bpffs)
    kept = {name for name in before if name.startswith("tl_packets_")}
    assert {after[name] for name in kept} == {before[name] for name in kept}, "links, in place"
    assert host.stop_agent() == 0 and host.pins() == []


def test_detach_after_a_kill_leaves_nothing(host: Operated) -> None:
    host.configure(**LOOPBACK)
    host.start_agent()
    assert host.agent is not None
    held = kernel_objects.held_by(host.agent.pid)
    host.stop_agent(signal.SIGKILL)
    assert host.command("detach").returncode == 0
    assert host.pins() == [] and not kernel_objects.left(held)


def test_an_interface_that_comes_is_attached_to(host: Operated) -> None:
    host.configure(**LOOPBACK)
    host.start_agent()
    name = f"tl{os.getpid()}"
    add = ["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"]
    subprocess.run(add, check=True, timeout=10)
    try:
        _wait_interfaces(host, {name, f"{name}p"}, there=True)
    finally:
        subprocess.run(["ip", "link", "del", name], check=True, timeout=10)
    status = _wait_interfaces(host, {name, f"{name}p"}, there=False)
    assert status["healthy"] and status["missing"] == []


def _wait_interfaces(host: Operated, names: set[str], *, there: bool) -> dict:

    def as_wanted() -> bool:
        status = host.status()
        assert status is not None
        found = {place["interface"] for place in status["packets"]["older_connections"]}
        return names <= found if there else not names & found

    until(as_wanted, seconds=5, every=0.1)
    return host.status() or {}


def test_new_cgroups_get_packets_too(host: Operated) -> None:
    host.configure(services=[{"match": {"cgroup": f"{host.name}/late/*"}}], **LOOPBACK)
    host.start_agent()
    assert not any("tl_packets_ops" in pin for pin in host.pins())
    (host.cgroup / "late").mkdir()
    host.wait_log("attached to .*late")
    assert any("tl_packets_ops" in pin for pin in host.pins())


def test_tls_needs_sys_ptrace_and_says_so(host: Operated) -> None:
    give(host)
    host.start_agent(prefix=only(*NETWORK))
    status = host.status()
    assert status is not None and status["healthy"], "it is auto: no fault"
    tls = status["groups"]["tls"]
    assert (tls["state"], tls["wanted"]) == ("off", False)
    assert "CAP_SYS_PTRACE" in tls["reason"] and status["tls"] is None
    assert "run the role `capabilities`" in host.command("doctor").stdout
    assert host.stop_agent() == 0


def test_go_write_needs_sys_admin_and_says_so(host: Operated) -> None:
    host.configure(instrumentation={"go_write": "auto"})
    give(host)
    host.start_agent(prefix=only(*NETWORK, "sys_ptrace"))
    status = host.status()
    assert status is not None and status["healthy"], "it is auto: no fault"
    found = status["groups"]["go_write"]
    assert status["groups"]["go"]["state"] == "on"
    assert (found["state"], found["wanted"]) == ("off", False)
    # under a lockdown that can be read, that is the reason
    assert "CAP_SYS_ADMIN" in found["reason"] or found["reason"].startswith("lockdown is ")
    assert found["fix"]
    assert host.stop_agent() == 0


@pytest.mark.parametrize("more", [[], ["lease"]], ids=["", "lease"])
def test_four_capabilities_are_enough_for_both(host: Operated, more: list[str]) -> None:
    """With a fifth, CAP_LEASE, a writer to a probed file has to wait."""
    give(host)
    host.configure(**LOOPBACK)
    host.start_agent(prefix=only(*NETWORK, "sys_ptrace", *more))
    status = host.status()
    assert status is not None and status["healthy"]
    assert {status["groups"][name]["state"] for name in ("packets", "tls")} == {"on"}
    code = "import ssl, time; print(1, flush=True); time.sleep(60)"
    service = host.spawn("web", ["python3", "-c", code], stdout=subprocess.PIPE)
    assert service.stdout is not None and service.stdout.readline() == b"1\n"
    files = until(
        lambda: (host.status() or {})["tls"]["files"], seconds=8, every=0.1, otherwise=host.log
    )
    assert {Path(file["path"]).name.split(".")[0] for file in files} <= {"libssl"}
    assert files[0]["processes"] == 1 and not files[0]["refused"]
    assert host.counters().get("tls_unguarded", 0) == (0 if more else len(files))
    assert host.stop_agent() == 0 and host.pins() == []
