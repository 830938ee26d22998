"""What works on this host, and why not: each feature group is tried, not derived from a version.

When an agent runs, its own account is used for the groups that it has attached, since loading them
a second time proves less than the programs that serve now.
"""

from __future__ import annotations

import platform
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from throughline import __version__
from throughline.agent import status
from throughline.bpf import abi
from throughline.config.model import Config
from throughline.features import groups, pins
from throughline.features.groups import Group
from throughline.features.programs import Programs, Settings
from throughline.host import facts
from throughline.services.rules import attach_roots
from throughline.text import printable


def report(config: Config) -> dict[str, Any]:
    """The shape that `doctor --json` prints; see docs/troubleshooting.md."""
    found = facts.gather()
    bpffs = facts.is_bpffs(config.agent.bpffs)
    running = status.read(config.agent.status_path)
    if running is not None:
        states = dict(running["groups"])
    else:
        states = {name: asdict(group) for name, group in _try(config, found).items()}
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
        "groups": states,
        "mode": mode(states),
        "notes": _notes(running, config, states),
    }


def mode(states: dict[str, Any]) -> str:
    """The strongest mode that the groups give: write, network, observe or none."""
    on = {name for name, group in states.items() if group["state"] == "on"}
    if "go_write" in on:
        return "write"
    if {"observe", "headers"} <= on:
        return "network"
    return "observe" if "observe" in on else "none"


def _try(config: Config, found: facts.Facts) -> dict[str, Group]:
    """Loads each group, attaches it where the agent would, and takes it away again.

    Nothing is traced meanwhile: no cgroup is listed, and what is not listed is left alone.
    """
    blocked = groups.prerequisites(config, found)
    if blocked is not None:
        following = {
            name: groups.unwanted(name, config, found) or blocked for name in groups.FOLLOWING
        }
        return {"observe": blocked, **following}
    assert found.cgroup2 is not None
    trial = Path(tempfile.mkdtemp(prefix="doctor", dir=config.agent.bpffs))
    settings = Settings(abi.Sampler.ALWAYS_OFF, 0.0, False, False)
    roots = attach_roots(config.services, cgroup2=found.cgroup2)
    try:
        with Programs(
            bpffs=trial, cgroup2=found.cgroup2, roots=roots, settings=settings
        ) as programs:
            return groups.attach(programs, config, found, trial=True).groups
    finally:
        pins.detach_all(trial)
        trial.rmdir()


def _notes(running: dict[str, Any] | None, config: Config, states: dict[str, Any]) -> list[str]:
    """What an operator should know although it works."""
    notes = [
        "The tracepoint sys_enter tells the end of an event loop's tick; while it is attached "
        "every system call of the host costs a few dozen nanoseconds more.",
    ]
    open_to_all = [str(peer) for peer in config.propagation.peers if peer.prefixlen == 0]
    if open_to_all:
        notes.append(
            f"propagation.peers has {', '.join(open_to_all)}: everybody who can reach a service "
            "may choose the trace of a request, and learns the ids of ours."
        )
    if states["go_write"]["state"] == "on":
        notes.append(
            "go_write writes into the memory of Go programs (docs/go.md). When its programs are "
            "loaded, a kernel before 6.14 logs some warnings: `… is installing a program with "
            "bpf_probe_write_user helper that may corrupt user memory!`"
        )
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
        if group["fix"]:
            lines.append(f"{'':<10} {'':<6} fix: {group['fix']}")
        for program in group.get("without", ()):
            without = f"without {program['program']}: no {program['gives']}"
            lines.append(f"{'':<10} {'':<6} {without} ({program['reason']})")
    lines += ["", f"mode: {found['mode']}"]
    lines += [f"note: {note}" for note in found["notes"]]
    return "\n".join(map(printable, lines))
