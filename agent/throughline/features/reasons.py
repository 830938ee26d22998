"""Reasons: a refusal of the kernel, in words that tell an operator what to do."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from throughline.features.state import GroupState, off
from throughline.features.table import NETWORK_CAPABILITIES, Group, Uprobes
from throughline.host.facts import Facts
from throughline.probes import trials

REINSTALL = "install the release again"
_LOCKED = ("integrity", "confidentiality")
_UNREADABLE = "whether there is lockdown is unknown, since securityfs is not mounted"
_WITHOUT_WRITE = (
    "leave it (instrumentation.go_write: off): Go programs get headers in plaintext HTTP/1 only, "
    "and options of packets beside HTTPS with HTTP/1.1"
)
_LIBBPF_ERRORS = 4000  # libbpf's own numbers, from LIBBPF_ERRNO__LIBELF on: it cannot read the file


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something does not work, and what to do."""

    reason: str
    fix: str


def of_host(group: Group, error: OSError, found: Facts) -> GroupState | None:
    """The state of a group that this kernel does not give to anybody, or not to this agent.

    None for any other error: that is a fault, see `of_fault`.
    """
    refused = None
    if isinstance(error, trials.ReturnsRefusedError):
        refused = without_returns(error)
    elif group.uprobes is not Uprobes.NONE:
        refused = without_uprobes(group, error, found)
    if refused is None and group.writes:
        refused = without_write(error, found)
    return refused


def without_sys_admin(found: Facts) -> GroupState:
    """The kernel asks for CAP_SYS_ADMIN, which this agent lacks: the group is not tried.

    The role grants the capability only where there is no lockdown; so lockdown is the reason where
    there is one.
    """
    if found.lockdown in _LOCKED:
        return _locked(found)
    return off(
        "missing CAP_SYS_ADMIN, without which the kernel gives no program bpf_probe_write_user"
        + ("" if found.securityfs else f"; {_UNREADABLE}"),
        "run the role `capabilities` with go_write in throughline_groups, or be root, or "
        + _WITHOUT_WRITE,
    )


def without_write(error: OSError, found: Facts) -> GroupState | None:
    """The kernel refuses bpf_probe_write_user to everybody: the group is off, nothing is wrong.

    The verifier names the helper when it does not know it. It names other things when it refuses a
    program of ours, which is a fault. Where it says nothing, a lockdown that is known explains it.
    """
    reason = error.strerror or str(error)
    if error.errno not in (errno.EINVAL, errno.EPERM, errno.EACCES):
        return None
    if found.lockdown in _LOCKED:
        return _locked(found)
    if "bpf_probe_write_user#" not in reason:
        return None
    refused = "the kernel refuses bpf_probe_write_user"
    if not found.securityfs:
        return off(
            f"{refused}, as it does under lockdown; {_UNREADABLE}",
            f"run the role `mounts` and ask doctor again, or {_WITHOUT_WRITE}",
        )
    return off(
        f"{refused} although lockdown is {found.lockdown}: {reason}",
        f"see which security modules it has (/sys/kernel/security/lsm), or {_WITHOUT_WRITE}",
    )


def _locked(found: Facts) -> GroupState:
    return off(
        f"lockdown is {found.lockdown}: the kernel refuses bpf_probe_write_user",
        f"boot without lockdown= and without Secure Boot, or {_WITHOUT_WRITE}",
    )


def without_uprobes(group: Group, error: OSError, found: Facts) -> GroupState | None:
    """The kernel gives this agent no uprobes: the group is off, nothing is wrong."""
    reason = error.strerror or str(error)
    if error.errno == errno.ENOENT and "bpf_object__open" not in reason:
        return off(
            f"{reason}: the kernel has no uprobes",
            "boot a kernel that is built with CONFIG_UPROBE_EVENTS=y",
        )
    refused = error.errno in (errno.EPERM, errno.EACCES) and "bpf_object__load" not in reason
    if refused and "CAP_PERFMON" in found.capabilities:
        return off(
            f"{reason}: perf-based uprobes need CAP_SYS_ADMIN on this kernel (its fix of "
            "CVE-2025-38466), and it has no uprobe_multi links, which do not",
            "run site.yml with throughline_probe_process: auto, which installs the process that "
            "opens them, or boot Linux 6.6 or later, or let the role `capabilities` grant it "
            f"(throughline_allow_sys_admin: true), or leave it: {group.switch}: off",
        )
    return None


def without_returns(error: trials.ReturnsRefusedError) -> GroupState:
    """Return probes of this kernel kill services that have a seccomp filter: `tls` is off."""
    reason = "return probes kill processes that have a seccomp filter on this kernel"
    if error.errno != errno.EFAULT:
        reason = "whether return probes kill processes that have a seccomp filter is not known"
    return off(
        f"{reason} ({error.strerror})",
        "boot Linux 6.12.14, 6.13.3 or 6.14, or later ones, or leave it: instrumentation.tls: off",
    )


def of_fault(error: OSError, found: Facts, *, adopting: bool = False) -> Reason:
    """The reason and the fix of any refusal; `adopting`: there are pins of an earlier run."""
    reason = error.strerror or str(error)
    if error.filename:
        reason = f"{error.filename}: {reason}"
    if found.lockdown == "confidentiality" and "bpf_object__load" in reason:
        return Reason(
            f"{reason}; lockdown=confidentiality keeps programs from reading memory, by which they "
            "tell goroutines from threads",
            "boot with lockdown=integrity, or without lockdown",
        )
    if error.errno == errno.EOPNOTSUPP and "FIONREAD" in reason:
        return Reason(
            reason,
            "boot a kernel whose FIONREAD is right (docs/decisions/0002-fionread.md), or one that "
            "is built with CONFIG_FTRACE_SYSCALLS=y",
        )
    lacking = [name for name in NETWORK_CAPABILITIES if name not in found.capabilities]
    if error.errno in (errno.EPERM, errno.EACCES) and lacking:
        return Reason(
            f"{reason}; missing {', '.join(lacking)}",
            "run the role `capabilities` (AmbientCapabilities of the unit), or be root",
        )
    if error.errno == errno.EPERM and "attach_cgroup" in reason:
        return Reason(
            f"{reason}; another program is attached there, or above, without the flag `multi`",
            "`bpftool cgroup tree` shows it; let its owner attach it with BPF_F_ALLOW_MULTI",
        )
    if error.errno == errno.EINVAL and "bpf_object__load" in reason and adopting:
        return Reason(
            f"{reason}; pins of another build are in the way", "throughline detach, then start"
        )
    if error.errno is not None and error.errno >= _LIBBPF_ERRORS:
        return Reason(reason, REINSTALL)
    fixes = {
        None: f"{REINSTALL}, or install libbpf 1.x",  # the dynamic linker, not the kernel
        errno.ENOENT: REINSTALL,
        errno.ENOEXEC: REINSTALL,
        errno.ENOSPC: "remove pins that are not needed from the bpffs, or raise its limits",
        errno.EROFS: "mount it read-write",
        errno.ENOMEM: "raise MemoryMax (and LimitMEMLOCK before kernel 5.11)",
    }
    report = "report it with the output of `throughline doctor --json`"
    return Reason(reason, fixes.get(error.errno, report))
