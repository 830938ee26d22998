"""Reasons: what is said of a group that the kernel refuses, and whether it is a fault."""

from __future__ import annotations

import dataclasses
import errno

import pytest

from tests.fixtures.facts import FACTS
from throughline.features import reasons
from throughline.features.table import GROUPS


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
    group = reasons.without_sys_admin(found)
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
    group = reasons.without_write(error, found)
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
    assert reasons.without_write(error, FACTS) is None
    assert str(error.strerror) in reasons.of_fault(error, FACTS).reason


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_perf_uprobes_that_want_sys_admin_are_explained(code: int) -> None:
    found = reasons.without_uprobes(GROUPS["tls"], OSError(code, "perf_event_open: no"), FACTS)
    assert found is not None and (found.state, found.wanted) == ("off", False)
    assert "CVE-2025-38466" in found.reason and "CAP_SYS_ADMIN" in found.reason
    assert "6.6" in found.fix and "throughline_allow_sys_admin" in found.fix


def test_a_kernel_without_uprobes_is_no_fault() -> None:
    refusal = OSError(errno.ENOENT, "No such file", "/sys/bus/event_source/devices/uprobe/type")
    found = reasons.without_uprobes(GROUPS["tls"], refusal, FACTS)
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
    assert reasons.without_uprobes(GROUPS["tls"], error, FACTS) is None


def test_without_perfmon_that_is_what_is_missing() -> None:
    capabilities = ("CAP_BPF", "CAP_NET_ADMIN", "CAP_SYS_PTRACE")
    found = dataclasses.replace(FACTS, capabilities=capabilities)
    error = OSError(errno.EACCES, "perf_event_open: Permission denied")
    assert reasons.without_uprobes(GROUPS["tls"], error, found) is None
    assert "missing CAP_PERFMON" in reasons.of_fault(error, found).reason
