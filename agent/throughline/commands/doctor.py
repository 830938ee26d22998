"""`throughline doctor`: what works on this host, and why not.

Each group is tried, not derived from a version. When an agent runs, the states are those of its
status: to load a group a second time proves less than the programs that serve now.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from throughline import __version__
from throughline.bpf import abi
from throughline.commands import node, status
from throughline.commands.output import print_json, table, text
from throughline.config.model import Config, load
from throughline.features import obstacles, pins
from throughline.features.attach import attach
from throughline.features.programs import Programs, Settings
from throughline.features.state import GroupState, State
from throughline.features.table import GROUPS, MODES
from throughline.host import facts
from throughline.runtimes.node.units import refused
from throughline.services.rules import attach_roots

FAILED = 1


def run(options: argparse.Namespace) -> int:
    """Prints the report; 1 when a wanted group is off."""
    found = report(load(options.config))
    if options.json:
        print_json(found)
    else:
        print(text(lines(found)))
    groups = found["groups"].values()
    return FAILED if any(g["wanted"] and g["state"] != State.ON for g in groups) else 0


def report(config: Config) -> dict[str, Any]:
    """The shape that `doctor --json` prints; see docs/reference/json.md."""
    found = facts.gather()
    bpffs = facts.is_bpffs(config.agent.bpffs)
    running = status.read(config.agent.status_path)
    if running is not None:
        states = dict(running["groups"])
    else:
        states = {name: group.as_json() for name, group in _try(config, found).items()}
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


def mode(states: Mapping[str, Mapping[str, Any]]) -> str:
    """The strongest mode whose groups are all on."""
    on = {name for name, group in states.items() if group["state"] == State.ON}
    return next(name for name, groups in MODES.items() if on.issuperset(groups))


def _try(config: Config, found: facts.Facts) -> dict[str, GroupState]:
    """Loads each group, attaches it where the agent would, and takes it away again.

    Nothing is traced meanwhile, since no cgroup is listed in the maps of a trial.
    """
    blocked = obstacles.of_host(config, found)
    if blocked is not None:
        return {
            name: obstacles.of_group(group, config, found) or blocked
            for name, group in GROUPS.items()
        }
    assert found.cgroup2 is not None
    trial = Path(tempfile.mkdtemp(prefix="doctor", dir=config.agent.bpffs))
    settings = Settings(abi.Sampler.ALWAYS_OFF, 0.0, False, False)
    roots = attach_roots(config.services, cgroup2=found.cgroup2)
    try:
        with Programs(
            bpffs=trial, cgroup2=found.cgroup2, roots=roots, settings=settings
        ) as programs:
            return attach(programs, config, found, trial=True).groups
    finally:
        pins.detach_all(trial)
        trial.rmdir()


def _notes(
    running: Mapping[str, Any] | None, config: Config, states: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """What an operator should know although it works."""
    notes = [
        "The tracepoint sys_enter tells the end of an event loop's tick. While it is attached, "
        "every system call on the host costs a few dozen nanoseconds more.",
    ]
    open_to_all = [str(peer) for peer in config.propagation.peers if peer.prefixlen == 0]
    if open_to_all:
        notes.append(
            f"propagation.peers has {', '.join(open_to_all)}: everybody who can reach a service "
            "may choose the trace of its request, and learns the ids of our traces."
        )
    if any(states[name]["state"] == State.ON for name, group in GROUPS.items() if group.writes):
        notes.append(
            "go_write writes into the memory of Go programs (docs/operator/go.md). When its "
            "programs are loaded, a kernel before 6.14 logs some warnings: `… is installing a "
            "program with bpf_probe_write_user helper that may corrupt user memory!`"
        )
    if running is not None and running.get("uprobes") == "process":
        notes.append(
            "This kernel gives uprobes only to processes with CAP_SYS_ADMIN. Those of the agent "
            "are opened by throughline-probes, while it is asked (docs/operator/security.md)."
        )
    if running is not None and running.get("legacy_programs"):
        notes.append(
            "The programs for kernels before 5.15 run here. Each packet costs some more hash "
            "lookups, and a request that comes with the segment that makes its connection is not "
            "seen (counter lost_early)."
        )
    if running is not None and running.get("fionread_broken"):
        notes.append(
            "FIONREAD of sockets in a sockhash says 0 on this kernel. Processes that call it "
            "(nginx, java and those that were seen to call it) get a header in the first request "
            "of each connection only (docs/decisions/0002-fionread.md)."
        )
    return notes + _notes_of_node(running)


def _notes_of_node(running: Mapping[str, Any] | None) -> list[str]:
    """What an operator has to do for services of Node.js."""
    restart = node.to_restart(running or {})
    notes = [f"{unit} runs without the preload: restart it when it suits you." for unit in restart]
    try:
        found = refused()
    except (OSError, ValueError) as error:
        return [*notes, f"What site.yml has refused to services of Node.js is not known: {error}"]
    return notes + [f"{unit} gets no preload: {why}." for unit, why in sorted(found.items())]


def lines(found: Mapping[str, Any]) -> list[str]:
    """The report for people."""
    host, agent = found["host"], found["agent"]
    rows = (
        ("lockdown", _lockdown(host)),
        ("BTF", "yes" if host["btf"] else "no"),
        ("cgroups", f"{host['cgroup_layout']}, cgroup2 at {host['cgroup2'] or '-'}"),
        ("bpffs", host["bpffs"] or "not mounted"),
        ("Python", host["python"]),
        ("capabilities", " ".join(host["capabilities"]) or "none"),
        ("agent", f"running, pid {agent['pid']}" if agent["running"] else "not running"),
    )
    return [
        f"throughline {found['version']} on kernel {host['kernel']} ({host['arch']})",
        *(f"  {line}" for line in table(rows)),
        "",
        *table(_groups(found["groups"]), head=("Group", "State", "Reason")),
        "",
        f"mode: {found['mode']}",
        *(f"note: {note}" for note in found["notes"]),
    ]


def _lockdown(host: Mapping[str, Any]) -> str:
    if host["lockdown"] != "absent":
        return str(host["lockdown"])
    if host["securityfs"]:
        return "none (the kernel has no lockdown)"
    return "unknown: securityfs is not mounted, so none is assumed"


def _groups(groups: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    rows = []
    for name, group in groups.items():
        rows.append((name, group["state"], group["reason"] or "works"))
        if group["fix"]:
            rows.append(("", "", f"fix: {group['fix']}"))
        rows += [("", "", status.without_program(p)) for p in group.get("without", ())]
    return rows
