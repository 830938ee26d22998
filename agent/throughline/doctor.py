"""What works on this host, and why not: each feature group is tried, not derived from a version.

When an agent runs, its own account is used for the groups that it has attached, since loading them
a second time proves less than the programs that serve now.
"""

from __future__ import annotations

import errno
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from throughline import __version__, status
from throughline.config import Config
from throughline.kernel import abi, facts
from throughline.kernel.programs import Programs, Settings, detach_all, objects_directory
from throughline.services import attach_roots

NETWORK_CAPABILITIES = ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN")
_REINSTALL = "install the release again"
_LATER = ("packets", "tls", "go", "go_write")


@dataclass(frozen=True, slots=True)
class Group:
    """The state of one feature group. `reason` and `fix` are "" when it is on."""

    state: str  # "on" | "off"
    wanted: bool
    reason: str
    fix: str


def report(config: Config) -> dict[str, Any]:
    """The shape that `doctor --json` prints; see docs/troubleshooting.md."""
    found = facts.gather()
    bpffs = facts.is_bpffs(config.agent.bpffs)
    running = status.read(config.agent.status_path)
    if running is not None:
        groups = dict(running["groups"])
    else:
        groups = {name: asdict(group) for name, group in _try(config, found).items()}
    return {
        "version": __version__,
        "host": {
            "kernel": found.kernel,
            "arch": found.arch,
            "lockdown": found.lockdown,
            "securityfs": found.securityfs,
            "btf": found.btf,
            "cgroup2": str(found.cgroup2) if found.cgroup2 else None,
            "cgroup_layout": found.cgroup_layout,
            "bpffs": str(bpffs.point) if bpffs else None,
            "python": platform.python_version(),
            "capabilities": list(found.capabilities),
        },
        "agent": {"running": running is not None, "pid": running["pid"] if running else None},
        "groups": groups,
        "mode": mode(groups),
        "notes": _notes(running),
    }


def mode(groups: dict[str, Any]) -> str:
    """The strongest mode that the groups give: write, network, observe or none."""
    on = {name for name, group in groups.items() if group["state"] == "on"}
    if "go_write" in on:
        return "write"
    if {"observe", "headers"} <= on:
        return "network"
    return "observe" if "observe" in on else "none"


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
    elif not any(objects_directory().glob("*.bpf.o")):
        reason, fix = f"no BPF objects in {objects_directory()}", _REINSTALL
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


def _try(config: Config, found: facts.Facts) -> dict[str, Group]:
    """Loads each group, attaches it where the agent would, and takes it away again.

    Nothing is traced meanwhile: no cgroup is listed, and what is not listed is left alone.
    """
    wanted = {"observe": True, "headers": config.propagation.headers}
    groups = {name: Group("off", False, "not part of this release", "") for name in _LATER}
    blocked = prerequisites(config, found)
    if blocked is not None:
        return {
            name: Group("off", want, blocked.reason, blocked.fix) for name, want in wanted.items()
        } | groups
    assert found.cgroup2 is not None
    trial = Path(tempfile.mkdtemp(prefix="doctor", dir=config.agent.bpffs))
    settings = Settings(abi.Sampler.ALWAYS_OFF, 0.0, False, False)
    roots = attach_roots(config.services, cgroup2=found.cgroup2)
    tried: dict[str, Group] = {}
    try:
        with Programs(
            bpffs=trial, cgroup2=found.cgroup2, roots=roots, settings=settings
        ) as programs:
            steps: dict[str, Callable[[], None]] = {
                "observe": programs.attach_observe,
                "headers": programs.attach_headers,
            }
            for name, attach in steps.items():
                if any(group.state == "off" for group in tried.values()):
                    tried[name] = Group("off", wanted[name], "observe is off", "see observe")
                    continue
                try:
                    attach()
                except OSError as error:
                    tried[name] = Group("off", wanted[name], *explain(error, found))
                else:
                    tried[name] = Group("on", wanted[name], "", "")
            programs.detach()
    finally:
        detach_all(trial)
        trial.rmdir()
    if not config.propagation.headers:
        tried["headers"] = Group("off", False, "propagation.headers is off", "")
    return tried | groups


def _notes(running: dict[str, Any] | None) -> list[str]:
    """What an operator should know although it works."""
    notes = [
        "The tracepoint sys_enter tells the end of an event loop's tick; while it is attached "
        "every system call of the host costs a few dozen nanoseconds more.",
    ]
    if running is not None and running.get("legacy_programs"):
        notes.append(
            "The programs for kernels before 5.15 run here: each packet costs some hash lookups "
            "more, and a request that comes with the segment that makes its connection is not "
            "seen (counter lost_early)."
        )
    if running is not None and running.get("fionread_broken"):
        notes.append(
            "FIONREAD of sockets in a sockhash says 0 on this kernel: processes that call it "
            "(nginx, java and those that were seen to) get a header into the first request of each "
            "connection only (docs/decisions/0002-fionread.md)."
        )
    return notes


def format_text(found: dict[str, Any]) -> str:
    """The report for people."""
    host = found["host"]
    lockdown = host["lockdown"]
    if lockdown == "absent":
        lockdown = (
            "none (the kernel has no lockdown)"
            if host["securityfs"]
            else "unknown: securityfs is not mounted, so none is assumed"
        )
    lines = [
        f"throughline {found['version']} on kernel {host['kernel']} ({host['arch']})",
        f"  lockdown      {lockdown}",
        f"  BTF           {'yes' if host['btf'] else 'no'}",
        f"  cgroups       {host['cgroup_layout']}, cgroup2 at {host['cgroup2'] or '-'}",
        f"  bpffs         {host['bpffs'] or 'not mounted'}",
        f"  Python        {host['python']}",
        f"  capabilities  {' '.join(host['capabilities']) or 'none'}",
        f"  agent         {'running, pid ' + str(found['agent']['pid']) if found['agent']['running'] else 'not running'}",  # noqa: E501
        "",
        f"{'Group':<10} {'State':<6} Reason",
    ]
    for name, group in found["groups"].items():
        reason = group["reason"] or "works"
        lines.append(f"{name:<10} {group['state']:<6} {reason}")
        if group["fix"] and group["wanted"]:
            lines.append(f"{'':<10} {'':<6} fix: {group['fix']}")
    lines += ["", f"mode: {found['mode']}"]
    lines += [f"note: {note}" for note in found["notes"]]
    return "\n".join(lines)
