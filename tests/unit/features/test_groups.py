"""Which groups are wanted, and what is said of one that cannot be."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from tests.fixtures.facts import FACTS
from throughline.config import model as config
from throughline.features import groups, pins
from throughline.features.objects import Objects
from throughline.features.programs import Programs
from throughline.probes import uprobes

PEERS = "propagation: {peers: [10.1.0.0/16]}"
WRITE = "instrumentation: {go_write: auto}"
EVERYTHING = f"{PEERS}\n{WRITE}"


class Refusing:
    """Programs of a kernel that has none of it."""

    adopting = False

    def attach_observe(self) -> None:
        raise OSError(errno.ENOENT, "no")

    attach_headers = attach_observe


def test_time_is_asked_for_ahead_of_each_group(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("")
    asked: list[bool] = []
    programs = cast(Programs, Refusing())
    found = groups.attach(
        programs,
        config.load(path, environment={}),
        FACTS,
        before=lambda: asked.append(True),
    )
    assert found.groups["observe"].state == "off"
    assert asked == [True]  # the others follow observe and were not tried


def unwanted(tmp_path: Path, name: str, text: str, *, without: str = "") -> groups.Group | None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    capabilities = tuple(c for c in FACTS.capabilities if c != without)
    found = dataclasses.replace(FACTS, capabilities=capabilities)
    return groups.unwanted(name, config.load(path, environment={}), found)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("headers", "propagation: {headers: off}", "propagation.headers is off"),
        ("packets", "propagation: {packets: off}", "propagation.packets is off"),
        ("packets", "", "propagation.peers is empty"),
        ("packets", "propagation: {peers: []}", "propagation.peers is empty"),
        ("tls", "instrumentation: {tls: off}", "instrumentation.tls is off"),
        ("go", "instrumentation: {go: off}", "instrumentation.go is off"),
        ("go_write", "", "instrumentation.go_write is off"),
        ("go_write", "instrumentation: {go: off}", "instrumentation.go_write is off"),
        ("go_write", "instrumentation: {go: off, go_write: auto}", "go is off"),
    ],
)
def test_what_nobody_asked_for_is_off_and_no_fault(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    found = unwanted(tmp_path, name, text)
    assert found is not None
    assert (found.state, found.wanted, found.reason) == ("off", False, reason)


@pytest.mark.parametrize("name", groups.FOLLOWING)
def test_what_is_asked_for_is_tried(tmp_path: Path, name: str) -> None:
    assert unwanted(tmp_path, name, EVERYTHING) is None


@pytest.mark.parametrize("name", ["tls", "go"])
def test_what_probes_needs_to_see_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(uprobes, "trial", lambda: uprobes.Kind.MULTI)
    found = unwanted(tmp_path, name, "", without="CAP_SYS_PTRACE")
    assert found is not None and not found.wanted
    assert "CAP_SYS_PTRACE" in found.reason and "throughline_groups" in found.fix
    assert unwanted(tmp_path, "packets", PEERS, without="CAP_SYS_PTRACE") is None
    write = unwanted(tmp_path, "go_write", WRITE, without="CAP_SYS_PTRACE")
    assert write == groups.Group("off", False, "go is off", "see go")


@pytest.mark.parametrize(
    ("lockdown", "securityfs", "reason"),
    [
        ("none", True, "missing CAP_SYS_ADMIN, without which"),
        ("absent", True, "missing CAP_SYS_ADMIN, without which"),
        ("absent", False, "missing CAP_SYS_ADMIN, without which"),
        ("integrity", True, "lockdown is integrity: the kernel refuses bpf_probe_write_user"),
    ],
)
def test_without_sys_admin_nothing_is_tried(lockdown: str, securityfs: bool, reason: str) -> None:
    capabilities = tuple(c for c in FACTS.capabilities if c != "CAP_SYS_ADMIN")
    found = dataclasses.replace(
        FACTS, capabilities=capabilities, lockdown=lockdown, securityfs=securityfs
    )
    group = groups.without_sys_admin(found)
    assert group is not None and (group.state, group.wanted) == ("off", False)
    assert group.reason.startswith(reason)
    assert ("securityfs is not mounted" in group.reason) == (not securityfs)
    assert ("throughline_groups" in group.fix) == (lockdown != "integrity")
    assert "instrumentation.go_write: off" in group.fix


UNKNOWN_HELPER = "(program of this type cannot use helper bpf_probe_write_user#36)"


@pytest.mark.parametrize(
    ("lockdown", "securityfs", "said", "reason"),
    [
        ("integrity", True, UNKNOWN_HELPER, "lockdown is integrity: the kernel refuses"),
        ("confidentiality", True, "", "lockdown is confidentiality: the kernel refuses"),
        ("none", True, UNKNOWN_HELPER, "the kernel refuses bpf_probe_write_user although lockdown"),
        ("none", True, "(unknown func bpf_probe_write_user#36)", "the kernel refuses"),
        ("absent", False, UNKNOWN_HELPER, "the kernel refuses bpf_probe_write_user, as it does"),
    ],
)
def test_a_kernel_that_lets_nobody_write_is_no_fault(
    lockdown: str, securityfs: bool, said: str, reason: str
) -> None:
    found = dataclasses.replace(FACTS, lockdown=lockdown, securityfs=securityfs)
    error = OSError(errno.EINVAL, f"bpf_object__load go_write.bpf.o: Invalid argument {said}")
    group = groups.without_write(error, found)
    assert group is not None and (group.state, group.wanted) == ("off", False)
    assert group.reason.startswith(reason) and "instrumentation.go_write: off" in group.fix
    assert ("securityfs is not mounted" in group.reason) == (not securityfs)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "bpf_object__load go_write.bpf.o: Permission denied (R1 invalid)"),
        OSError(errno.E2BIG, "bpf_object__load go_write.bpf.o: Argument list too long"),
        OSError(errno.ENOMEM, "bpf_object__load go_write.bpf.o: Cannot allocate memory"),
    ],
)
def test_a_program_of_ours_that_is_refused_is_a_fault(error: OSError) -> None:
    assert groups.without_write(error, FACTS) is None
    assert str(error.strerror) in groups.explain(error, FACTS)[0]


class Giving:
    """Programs of a kernel that gives what it is asked for, but for `refused`."""

    adopting = False

    def __init__(self, objects: Objects, refused: dict[str, OSError]) -> None:
        self.objects = objects
        self.withdrawn: list[str] = []
        self._refused = refused

    def __getattr__(self, name: str) -> Callable[..., object]:
        group = name.removeprefix("attach_")

        def attach(*_: object, **__: object) -> object:
            if group in self._refused:
                raise self._refused[group]
            return group

        return attach

    def withdraw(self, name: str) -> None:
        self.withdrawn.append(name)


@pytest.mark.parametrize(
    ("refused", "states", "reason"),
    [
        ({}, ("on", "on"), ""),
        ({"go": OSError(errno.E2BIG, "bpf_object__load")}, ("off", "off"), "go is off"),
        (
            {"go_write": OSError(errno.EINVAL, f"bpf_object__load {UNKNOWN_HELPER}")},
            ("on", "off"),
            "the kernel refuses bpf_probe_write_user",
        ),
    ],
)
def test_go_write_is_tried_after_go(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: dict[str, OSError],
    states: tuple[str, str],
    reason: str,
) -> None:
    monkeypatch.setenv("THROUGHLINE_BPF_OBJECTS", str(tmp_path))
    monkeypatch.setattr(uprobes, "trial", lambda: uprobes.Kind.MULTI)
    for name in groups.FOLLOWING:
        (tmp_path / f"{name}.bpf.o").touch()
    path = tmp_path / "config.yaml"
    path.write_text(EVERYTHING)
    programs = Giving(Objects(bpffs=tmp_path, map_sizes={}), refused)
    found = groups.attach(cast(Programs, programs), config.load(path, environment={}), FACTS)
    assert list(found.groups) == ["observe", *groups.FOLLOWING]
    assert (found.groups["go"].state, found.groups["go_write"].state) == states
    assert found.groups["go_write"].reason.startswith(reason)
    assert not found.groups["go_write"].wanted or states == ("on", "on")
    probing = [name for name in groups.PROBING if found.groups[name].state == "on"]
    assert list(found.probing) == probing
    off = [name for name, group in found.groups.items() if group.state == "off"]
    assert [name for name in programs.withdrawn if name in groups.FOLLOWING] == off


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ("", ""),
        ("-legacy", "the programs for kernels before 5.15 do not have it"),
    ],
)
def test_a_group_that_older_kernels_do_not_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, reason: str
) -> None:
    monkeypatch.setenv("THROUGHLINE_BPF_OBJECTS", str(tmp_path))
    loaded = Objects(bpffs=tmp_path, map_sizes={})
    loaded.variant = variant
    lost = groups.without_object("go", loaded)
    assert lost is not None and lost.reason == "go is not among the BPF objects"
    (tmp_path / "go.bpf.o").touch()
    found = groups.without_object("go", loaded)
    assert (found.reason if found else "") == reason
    assert not (found and found.wanted)


def test_where_the_kernel_gives_no_uprobes_that_is_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(errno.EACCES, "perf_event_open: Permission denied")

    monkeypatch.setattr(uprobes, "trial", refuse)
    found = unwanted(tmp_path, "tls", "", without="CAP_SYS_PTRACE")
    assert found is not None and not found.wanted
    assert "CAP_SYS_ADMIN" in found.reason and "throughline_allow_sys_admin" in found.fix


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_perf_uprobes_that_want_sys_admin_are_explained(code: int) -> None:
    found = groups.without_uprobes("tls", OSError(code, "perf_event_open: no"), FACTS)
    assert found is not None and (found.state, found.wanted) == ("off", False)
    assert "CVE-2025-38466" in found.reason and "CAP_SYS_ADMIN" in found.reason
    assert "6.6" in found.fix and "throughline_allow_sys_admin" in found.fix


def test_a_kernel_without_uprobes_is_no_fault() -> None:
    refusal = OSError(errno.ENOENT, "No such file", "/sys/bus/event_source/devices/uprobe/type")
    found = groups.without_uprobes("tls", refusal, FACTS)
    assert found is not None and not found.wanted and "CONFIG_UPROBE_EVENTS" in found.fix


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "bpf_object__load tls.bpf.o: Permission denied (R1 invalid)"),
        OSError(errno.ENOENT, "bpf_object__open_file tls.bpf.o: No such file or directory"),
        OSError(errno.EINVAL, "bpf_object__load tls.bpf.o: Invalid argument"),
    ],
)
def test_what_a_release_got_wrong_is_a_fault(error: OSError) -> None:
    assert groups.without_uprobes("tls", error, FACTS) is None


def test_without_perfmon_that_is_what_is_missing() -> None:
    capabilities = ("CAP_BPF", "CAP_NET_ADMIN", "CAP_SYS_PTRACE")
    found = dataclasses.replace(FACTS, capabilities=capabilities)
    error = OSError(errno.EACCES, "perf_event_open: Permission denied")
    assert groups.without_uprobes("tls", error, found) is None
    assert "missing CAP_PERFMON" in groups.explain(error, found)[0]


def test_each_group_that_follows_can_be_withdrawn(tmp_path: Path) -> None:
    for name in groups.FOLLOWING:
        pins.withdraw(tmp_path, name)
