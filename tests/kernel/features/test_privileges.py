"""Which capability a group needs, and what the operator reads when the host lacks something.

Such a host is a private mount namespace, so that this machine stays as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fixtures.load import Load, start_chain
from tests.fixtures.operated import Operated
from tests.fixtures.privileges import NETWORK, NOBODY, give, mounts, only
from throughline.bpf import abi, libbpf
from throughline.features.objects import directory as objects_directory


def _refused(host: Operated, prefix: Sequence[str], **environment: str) -> tuple[str, dict]:
    """Runs the agent, which must end with 3, and doctor, which must end with 1. Returns both."""
    run = host.command("run", prefix=prefix, environment=environment)
    assert run.returncode == 3, run.stderr
    assert "fix: " in run.stderr
    assert "Traceback" not in run.stderr
    doctor = host.command("doctor", "--json", prefix=prefix, environment=environment)
    assert doctor.returncode == 1, doctor.stderr
    report = json.loads(doctor.stdout)
    assert report["mode"] == "none"
    for name in ("observe", "headers"):
        group = report["groups"][name]
        assert group["state"] == "off" and group["wanted"] and group["reason"] and group["fix"]
    text = host.command("doctor", prefix=prefix, environment=environment)
    assert text.returncode == 1 and report["groups"]["observe"]["fix"] in text.stdout
    assert host.pins() == [], "neither leaves anything behind"
    return run.stderr, report


def test_three_capabilities_are_enough(host: Operated) -> None:
    give(host)
    host.start_agent(prefix=only(*NETWORK))
    chain = start_chain(host)
    with Load(chain) as load:
        load.wait(0.5)
    assert not load.failures and not load.untraced()
    assert len(host.wait_spans(3 * len(load.answers))) == 3 * len(load.answers)
    doctor = host.command("doctor", "--json")
    assert doctor.returncode == 0
    assert json.loads(doctor.stdout)["mode"] == "network"
    assert host.agent is not None
    uids = Path(f"/proc/{host.agent.pid}/status").read_text()
    assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}" in uids and "NoNewPrivs:\t1" in uids
    assert host.stop_agent() == 0
    assert host.pins() == []


@pytest.mark.parametrize("without", NETWORK)
def test_each_capability_is_named_when_it_lacks(host: Operated, without: str) -> None:
    give(host)
    said, report = _refused(host, only(*(name for name in NETWORK if name != without)))
    name = f"CAP_{without.upper()}"
    others = [f"CAP_{other.upper()}" for other in NETWORK if other != without]
    assert f"missing {name}" in said
    assert not any(f"missing {other}" in said or f", {other}" in said for other in others)
    assert "AmbientCapabilities" in said
    assert sorted(report["host"]["capabilities"]) == sorted(others)


def test_no_capability_at_all(host: Operated) -> None:
    give(host)
    said, _ = _refused(host, only())
    assert "missing CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN" in said


def test_bpffs_of_another_user(host: Operated) -> None:
    host.bpffs.chmod(0o755)
    os.chown(host.directory, NOBODY, NOBODY)
    said, _ = _refused(host, only(*NETWORK))
    assert str(host.bpffs) in said
    assert "may not write" in said and "chown" in said


def test_bpffs_is_readonly(host: Operated) -> None:
    said, _ = _refused(host, mounts(f"mount -o remount,bind,ro {host.bpffs}"))
    assert f"{host.bpffs} is mounted read-only" in said
    assert "remount,rw" in said


def test_bpffs_is_a_plain_directory(host: Operated) -> None:
    plain = host.directory / "plain"
    plain.mkdir()
    for where in (plain, plain / "missing"):
        said, report = _refused(host, (), THROUGHLINE_BPFFS=str(where))
        assert f"{where} is not a bpffs" in said
        assert f"mount -t bpf throughline {where}" in said
        assert report["host"]["bpffs"] is None


def test_cgroup2_is_not_mounted(host: Operated) -> None:
    cgroup2 = host.cgroup.parent
    said, report = _refused(host, mounts(f"umount {cgroup2}"))
    assert "cgroup2 is not mounted" in said
    assert report["host"]["cgroup2"] is None
    assert report["host"]["cgroup_layout"] in ("legacy", "none")


def test_btf_is_missing(host: Operated) -> None:
    said, report = _refused(host, mounts("mount -t tmpfs none /sys/kernel/btf"))
    assert "/sys/kernel/btf/vmlinux is missing" in said
    assert "CONFIG_DEBUG_INFO_BTF" in said
    assert report["host"]["btf"] is False


def test_objects_are_missing(host: Operated) -> None:
    empty = host.directory / "empty"
    empty.mkdir()
    said, _ = _refused(host, (), THROUGHLINE_BPF_OBJECTS=str(empty))
    assert f"no BPF objects in {empty}" in said
    assert "install the release again" in said


@pytest.fixture
def objects(host: Operated) -> Path:
    """A copy of the objects, to be damaged."""
    copy = host.directory / "objects"
    shutil.copytree(objects_directory(), copy)
    return copy


def test_an_object_of_another_abi_is_refused(host: Operated, objects: Path) -> None:
    path = objects / "observe.bpf.o"
    opened = libbpf.Object(path, pin_root=host.bpffs)
    config = abi.Config(*abi.CONFIG.unpack(opened.rodata(".rodata.config")))
    opened.close()
    other = host.directory / "config"
    other.write_bytes(abi.CONFIG.pack(*config._replace(abi_version=config.abi_version + 1)))
    update = f"--update-section=.rodata.config={other}"
    subprocess.run(["llvm-objcopy", update, str(path)], check=True)
    said, _ = _refused(host, (), THROUGHLINE_BPF_OBJECTS=str(objects))
    wanted = f"observe.bpf.o has ABI {config.abi_version + 1}, this agent {config.abi_version}"
    assert wanted in said
    assert "install the release again" in said


def test_a_damaged_object_is_refused(host: Operated, objects: Path) -> None:
    path = objects / "observe.bpf.o"
    path.write_bytes(path.read_bytes()[:4096])
    said, _ = _refused(host, (), THROUGHLINE_BPF_OBJECTS=str(objects))
    assert "observe.bpf.o" in said


def test_what_another_release_has_pinned_serves_on(host: Operated, objects: Path) -> None:
    """A release of another ABI that cannot attach does not touch the one that serves."""
    served = host.bpffs / "abi1" / "served"
    served.parent.mkdir()
    create = ["type", "array", "key", "4", "value", "8", "entries", "1", "name", "served"]
    subprocess.run(["bpftool", "map", "create", str(served), *create], check=True)
    (objects / "observe.bpf.o").unlink()
    run = host.command("run", environment={"THROUGHLINE_BPF_OBJECTS": str(objects)})
    assert run.returncode in (1, 3)
    assert host.pins() == ["abi1", "abi1/served"]
    served.unlink()
    served.parent.rmdir()


def test_headers_alone_refused_is_degraded_not_dead(host: Operated, objects: Path) -> None:
    (objects / "headers.bpf.o").unlink()
    host.objects = objects
    host.start_agent()
    status = host.status()
    assert status is not None and not status["healthy"]
    assert status["groups"]["observe"]["state"] == "on"
    headers = status["groups"]["headers"]
    assert headers["state"] == "off" and "headers.bpf.o" in headers["reason"] and headers["fix"]
    assert host.command("status").returncode == 1
    doctor = host.command("doctor")
    assert doctor.returncode == 1 and "mode: observe" in doctor.stdout
    assert host.stop_agent() == 0


def test_no_libbpf(host: Operated) -> None:
    # a file with the name of the library but other content, as of a broken bundle
    lib = host.directory / "lib"
    lib.mkdir()
    (lib / "libbpf.so.1").write_bytes(b"")
    run = host.command("run", environment={"THROUGHLINE_LIBDIR": str(lib)})
    assert run.returncode in (1, 3) and "libbpf.so.1" in run.stderr
    assert "Traceback" not in run.stderr


def test_runtime_directory_is_missing(host: Operated) -> None:
    missing = host.directory / "missing"
    run = host.command("run", environment={"THROUGHLINE_RUNTIME_DIRECTORY": str(missing)})
    assert run.returncode == 3
    assert str(missing) in run.stderr and "RuntimeDirectory=" in run.stderr
    assert host.pins() == []


def test_bad_configuration_is_refused_before_anything_is_touched(host: Operated) -> None:
    (host.directory / "config.yaml").write_text("sampling: {sampler: often}\n")
    for command in ("run", "doctor"):
        run = host.command(command)
        assert run.returncode == 2
        assert "config.yaml" in run.stderr and "always_on" in run.stderr
    assert host.pins() == []


def test_lockdown_is_known_only_with_securityfs(host: Operated) -> None:
    def reported(*prefix: str) -> tuple[dict, str]:
        run = host.command("doctor", "--json", prefix=prefix)
        assert run.returncode == 0, run.stderr
        text = host.command("doctor", prefix=prefix)
        return json.loads(run.stdout)["host"], text.stdout

    where = "/sys/kernel/security"
    found, _ = reported(*mounts(f"mountpoint -q {where} || mount -t securityfs none {where}"))
    assert found["securityfs"] is True
    wanted = subprocess.run(
        [
            *mounts(f"mountpoint -q {where} || mount -t securityfs none {where}"),
            "cat",
            f"{where}/lockdown",
        ],
        capture_output=True,
        text=True,
    ).stdout
    assert f"[{found['lockdown']}]" in wanted
    found, text = reported(*mounts(f"! mountpoint -q {where} || umount {where}"))
    assert (found["securityfs"], found["lockdown"]) == (False, "absent")
    assert "unknown: securityfs is not mounted" in text
