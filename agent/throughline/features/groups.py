"""The feature groups: which are wanted, what each needs, and why one cannot be.

Each is tried, not derived from a version. The agent and `throughline doctor` go the same way here,
so that what doctor says is what the agent does.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from throughline.bpf import libbpf
from throughline.config.model import Config
from throughline.features import objects
from throughline.features.programs import Programs
from throughline.features.table import LeftOut
from throughline.host import facts
from throughline.probes import uprobes

log = logging.getLogger(__name__)

NETWORK_CAPABILITIES = ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN")
# Those that follow `observe`, whose maps they share, in the order in which they are attached.
FOLLOWING = ("headers", "packets", "tls", "go", "go_write")
PROBING = ("tls", "go", "go_write")  # those that put uprobes into files
RETURNING = ("tls",)  # those of them that probe where functions return
_LOCKED = ("integrity", "confidentiality")
_UNREADABLE = "what lockdown says is not known, since securityfs is not mounted"
LOOPBACK = 1  # its interface index in every network namespace
_REINSTALL = "install the release again"
_WITHOUT_WRITE = (
    "leave it (instrumentation.go_write: off): Go programs get headers in plaintext HTTP/1 only, "
    "and options of packets beside HTTPS with HTTP/1.1"
)


@dataclass(frozen=True, slots=True)
class Group:
    """The state of one feature group. `reason` and `fix` are "" when it is on.

    `wanted` and off is something to mend: the agent is degraded by it. A group that is off because
    nobody asked for it, or because it is `auto` and this host cannot give it, is not `wanted`.
    `without`: programs that this kernel refuses and that the group does without; no fault either.
    """

    state: str  # "on" | "off"
    wanted: bool
    reason: str
    fix: str
    without: tuple[LeftOut, ...] = ()


_GO_IS_OFF = Group("off", False, "go is off", "see go")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the groups; `probing` are those whose uprobes are to be attached by `kind`."""

    groups: dict[str, Group]
    probing: dict[str, libbpf.Object]
    kind: uprobes.Kind | None


def attach(
    programs: Programs,
    config: Config,
    found: facts.Facts,
    *,
    trial: bool = False,
    before: Callable[[], None] | None = None,
) -> Outcome:
    """Attaches every group that is wanted and possible; withdraws what earlier runs left of others.

    A trial puts its programs on one interface only. `before` is called ahead of each group: the
    kernel's verifier takes a tenth of a second for one, or many seconds on a slow machine.
    """
    probing: dict[str, libbpf.Object] = {}
    kind: uprobes.Kind | None = None

    def attach_packets() -> None:
        propagation = config.propagation
        only = LOOPBACK if trial else None
        programs.attach_packets(
            propagation.peers, priority=propagation.tc_priority, only_interface=only
        )

    def probe(name: str, load: Callable[[uprobes.Kind], libbpf.Object]) -> None:
        nonlocal kind
        if kind is None:
            kind = uprobes.trial()
            _sweep(programs)
        if name in RETURNING:
            uprobes.try_returns(kind)
        probing[name] = load(kind)

    def attempt(name: str, attach: Callable[[], None]) -> Group:
        if before is not None:
            before()
        try:
            attach()
        except OSError as error:
            refused = None
            if isinstance(error, uprobes.ReturnsRefusedError):
                refused = without_returns(error)
            elif name in PROBING:
                refused = without_uprobes(name, error, found)
            if name == "go_write" and refused is None:
                refused = without_write(error, found)
            if refused is not None:
                return refused
            return Group("off", True, *explain(error, found, adopting=programs.adopting))
        log.info("group %s is on", name)
        return Group("on", True, "", "", programs.left_out(name))

    steps: dict[str, Callable[[], None]] = {
        "headers": programs.attach_headers,
        "packets": attach_packets,
        "tls": lambda: probe("tls", programs.attach_tls),
        "go": lambda: probe("go", programs.attach_go),
        "go_write": lambda: probe("go_write", programs.attach_go_write),
    }
    groups = {"observe": attempt("observe", programs.attach_observe)}
    for name in FOLLOWING:
        group = unwanted(name, config, found)
        if group is None and groups["observe"].state == "off":
            group = Group("off", True, "observe is off", "see observe")
        elif group is None and name == "go_write" and groups["go"].state == "off":
            group = _GO_IS_OFF
        if group is None and name != "headers":
            group = without_object(name, programs.objects)
        groups[name] = group or attempt(name, steps[name])
        if groups["observe"].state == "on" and groups[name].state == "off":
            _withdraw(programs, name)
    return Outcome(groups, probing, kind)


def _sweep(programs: Programs) -> None:
    """Requests inside of an earlier run's probes: their threads would be ambiguous for minutes."""
    try:
        programs.sweep(earlier=True)
    except OSError as error:
        log.warning("requests of an earlier run: %s", error.strerror)


def tell(groups: Mapping[str, Group]) -> None:
    """Logs which groups are off, and which programs others are without."""
    for name, group in groups.items():
        if group.wanted and group.state == "off":
            log.error("group %s is off: %s; fix: %s", name, group.reason, group.fix)
        for program in group.without:
            log.warning(
                "group %s is without %s: no %s (%s)",
                *(name, program.program, program.gives, program.reason),
            )


def _withdraw(programs: Programs, name: str) -> None:
    """An earlier run may have left it: what is off must not go on unseen."""
    try:
        programs.withdraw(name)
    except OSError as error:
        log.warning("%s of an earlier run: %s", name, error.strerror)


def unwanted(name: str, config: Config, found: facts.Facts) -> Group | None:
    """Why a group is left out before it is tried, or None."""
    propagation = config.propagation
    if name == "headers" and not propagation.headers:
        return Group("off", False, "propagation.headers is off", "")
    if name == "packets" and not propagation.packets:
        return Group("off", False, "propagation.packets is off", "")
    if name == "packets" and not propagation.peers:
        return Group(
            "off",
            False,
            "propagation.peers is empty",
            "list the networks of the fleet there; the role `agent` takes them from the inventory",
        )
    if name in PROBING and name not in config.instrumentation:
        return Group("off", False, f"instrumentation.{name} is off", "")
    if name == "go_write":
        return _GO_IS_OFF if unwanted("go", config, found) else without_sys_admin(found)
    if name in PROBING and "CAP_SYS_PTRACE" not in found.capabilities:
        # the role grants it only where the kernel gives uprobes: that is then what is to be said
        return refusal(name, found) or Group(
            "off",
            False,
            "missing CAP_SYS_PTRACE, without which the files of services cannot be found",
            f"run the role `capabilities` with {name} in throughline_groups, or be root",
        )
    return None


def without_sys_admin(found: facts.Facts) -> Group | None:
    """That go_write need not be tried, since this agent lacks what the kernel asks for it.

    The role grants it only where the kernel has no lockdown: that is then what is to be said.
    """
    if "CAP_SYS_ADMIN" in found.capabilities:
        return None
    if found.lockdown in _LOCKED:
        return _locked(found)
    return Group(
        "off",
        False,
        "missing CAP_SYS_ADMIN, without which the kernel gives no program bpf_probe_write_user"
        + ("" if found.securityfs else f"; {_UNREADABLE}"),
        "run the role `capabilities` with go_write in throughline_groups, or be root, or "
        + _WITHOUT_WRITE,
    )


def without_write(error: OSError, found: facts.Facts) -> Group | None:
    """A kernel that lets nobody write into programs: go_write is off, and nothing is wrong.

    That it is this helper that the verifier does not know, and not a program that it refuses, is in
    the verifier's words; where it said nothing, a lockdown that is known explains it.
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
        return Group(
            "off",
            False,
            f"{refused}, as it does under lockdown; {_UNREADABLE}",
            f"run the role `mounts` and see what lockdown says, or {_WITHOUT_WRITE}",
        )
    return Group(
        "off",
        False,
        f"{refused} although lockdown is {found.lockdown}: {reason}",
        f"see which security modules it has (/sys/kernel/security/lsm), or {_WITHOUT_WRITE}",
    )


def _locked(found: facts.Facts) -> Group:
    return Group(
        "off",
        False,
        f"lockdown is {found.lockdown}: the kernel refuses bpf_probe_write_user",
        f"boot without lockdown= and without Secure Boot, or {_WITHOUT_WRITE}",
    )


def without_object(name: str, loaded: objects.Objects) -> Group | None:
    """A group that this kernel has no programs for, or that an installation lacks, or None."""
    if loaded.has(name):
        return None
    if loaded.is_for_newer(name):
        return Group(
            "off",
            False,
            "the programs for kernels before 5.15 do not have it",
            "boot Linux 5.15 or later, or leave it: the other groups do without",
        )
    return Group("off", False, f"{name} is not among the BPF objects", _REINSTALL)


def refusal(name: str, found: facts.Facts) -> Group | None:
    """That this kernel gives this agent no uprobes, if it does not."""
    try:
        uprobes.trial()
    except OSError as error:
        return without_uprobes(name, error, found)
    return None


def without_uprobes(name: str, error: OSError, found: facts.Facts) -> Group | None:
    """A kernel that gives this agent no uprobes: the group is off, and nothing is wrong."""
    reason = error.strerror or str(error)
    if error.errno == errno.ENOENT and "bpf_object__open" not in reason:
        return Group(
            "off",
            False,
            f"{reason}: the kernel has no uprobes",
            "boot a kernel that is built with CONFIG_UPROBE_EVENTS=y",
        )
    refused = error.errno in (errno.EPERM, errno.EACCES) and "bpf_object__load" not in reason
    if refused and "CAP_PERFMON" in found.capabilities:
        return Group(
            "off",
            False,
            f"{reason}: perf-based uprobes need CAP_SYS_ADMIN on this kernel (its fix of "
            "CVE-2025-38466), and it has no uprobe_multi links, which do not",
            "boot Linux 6.6 or later, or let the role `capabilities` grant it "
            f"(throughline_allow_sys_admin: true), or leave it: instrumentation.{name}: off",
        )
    return None


def without_returns(error: uprobes.ReturnsRefusedError) -> Group:
    """A kernel whose return probes kill services with a seccomp filter: `tls` is off."""
    reason = "return probes kill processes that have a seccomp filter on this kernel"
    if error.errno != errno.EFAULT:
        reason = "whether return probes kill processes that have a seccomp filter is not known"
    return Group(
        "off",
        False,
        f"{reason} ({error.strerror})",
        "boot Linux 6.12.14, 6.13.3 or 6.14, or later ones, or leave it: instrumentation.tls: off",
    )


def prerequisites(config: Config, found: facts.Facts) -> Group | None:
    """What keeps every group from working, found before anything is loaded."""
    where = config.agent.bpffs
    mount = facts.is_bpffs(where)
    reason = fix = ""
    if found.cgroup2 is None:
        reason = "cgroup2 is not mounted (no cgroup2 line in /proc/self/mountinfo)"
        fix = "mount -t cgroup2 none /sys/fs/cgroup/unified, or run the role `mounts`"
    elif not found.btf:
        reason = "/sys/kernel/btf/vmlinux is missing: the kernel has no type information (CO-RE)"
        fix = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y"
    elif not any(objects.directory().glob("*.bpf.o")):
        reason, fix = f"no BPF objects in {objects.directory()}", _REINSTALL
    elif mount is None:
        reason = f"{where} is not a bpffs"
        fix = f"run the role `mounts`, or: mount -t bpf throughline {where}"
    elif mount.read_only:
        reason = f"{where} is mounted read-only"
        fix = f"mount -o remount,rw {mount.point}"
    elif not os.access(where, os.R_OK | os.W_OK | os.X_OK):
        reason = f"{where} belongs to another user: this one may not write there"
        fix = f"chown it to the agent's user and chmod 0700 {where}, or run the role `mounts`"
    return Group("off", True, reason, fix) if reason else None


def explain(error: OSError, found: facts.Facts, *, adopting: bool = False) -> tuple[str, str]:
    """Reason and fix for a refusal of the kernel; `adopting`: there are pins of an earlier run."""
    reason = error.strerror or str(error)
    if error.filename:
        reason = f"{error.filename}: {reason}"
    if found.lockdown == "confidentiality" and "bpf_object__load" in reason:
        return (
            f"{reason}; lockdown=confidentiality keeps programs from reading memory, by which they "
            "tell goroutines from threads",
            "boot with lockdown=integrity, or without lockdown",
        )
    if error.errno == errno.EOPNOTSUPP and "FIONREAD" in reason:
        return (
            reason,
            "boot a kernel whose FIONREAD is right (docs/decisions/0002-fionread.md), or one that "
            "is built with CONFIG_FTRACE_SYSCALLS=y",
        )
    lacking = [name for name in NETWORK_CAPABILITIES if name not in found.capabilities]
    if error.errno in (errno.EPERM, errno.EACCES) and lacking:
        return (
            f"{reason}; missing {', '.join(lacking)}",
            "run the role `capabilities` (AmbientCapabilities of the unit), or be root",
        )
    if error.errno == errno.EPERM and "attach_cgroup" in reason:
        return (
            f"{reason}; another program is attached there, or above, without the flag `multi`",
            "`bpftool cgroup tree` shows it; let its owner attach it with BPF_F_ALLOW_MULTI",
        )
    if error.errno == errno.EINVAL and "bpf_object__load" in reason and adopting:
        return f"{reason}; pins of another build are in the way", "throughline detach, then start"
    fixes = {
        None: f"{_REINSTALL}, or install libbpf 1.x",  # not the kernel, but the dynamic linker
        errno.ENOENT: _REINSTALL,
        errno.ENOEXEC: _REINSTALL,
        errno.ENOSPC: "remove pins that are not needed from the bpffs, or raise its limits",
        errno.EROFS: "mount it read-write",
        errno.ENOMEM: "raise MemoryMax (and LimitMEMLOCK before kernel 5.11)",
    }
    fix = fixes.get(error.errno, "report it with the output of `throughline doctor --json`")
    # libbpf's own numbers, from LIBBPF_ERRNO__LIBELF on: the file is no object that it can read
    return reason, _REINSTALL if error.errno is not None and error.errno >= 4000 else fix
