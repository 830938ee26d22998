"""`throughline status`: what the running agent does, from the file that it writes each second.

The file may come from an agent of another release, so no key of it is taken for granted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from throughline.commands import node
from throughline.commands.output import few, hint, print_json, table, text
from throughline.commands.parents import parents_of_calls
from throughline.config.model import ConfigError, default_status_path, load
from throughline.features.table import GROUPS
from throughline.text import printable

STALE_SECONDS = 5.0
HEALTHY, DEGRADED, NOT_RUNNING = 0, 1, 3


def run(options: argparse.Namespace) -> int:
    """Prints the status of the running agent."""
    try:
        path = load(options.config).agent.status_path
    except ConfigError as error:
        # the agent may well run on the configuration that it was started with
        path = default_status_path()
        problem = printable(error.problems[0])
        print(f"throughline: {problem}; looking at {path}", file=sys.stderr)
    found = read(path)
    if options.json:
        if found is None:
            print("null")
        else:
            print_json(found)
    elif found is None:
        print(f"throughline is not running (no fresh {path})")
        hint("systemctl status throughline.service; journalctl -u throughline.service")
    else:
        print(text(lines(found)))
    return exit_code(found)


def read(path: Path) -> dict[str, Any] | None:
    """The status of the agent that runs now, or None when there is none.

    None is also the answer for a file that is older than 5 seconds, whose process has gone, or that
    is no status.
    """
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
        updated, pid = float(status["updated_unix"]), int(status["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # after the clock was set back, the file stays young: so the process is asked as well
    if time.time() - updated > STALE_SECONDS or not _is_alive(pid):
        return None
    return status if isinstance(status, dict) else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return pid > 0


def exit_code(status: Mapping[str, Any] | None) -> int:
    """The exit code of `throughline status`."""
    if status is None:
        return NOT_RUNNING
    return HEALTHY if status.get("healthy") is True else DEGRADED


def lines(status: Mapping[str, Any]) -> list[str]:
    """The status for people."""
    healthy = "healthy" if status.get("healthy") else "degraded"
    uptime = _duration(float(status["updated_unix"]) - float(status.get("started_unix", 0)))
    found = [f"throughline {status.get('version', '?')}: {healthy}, up {uptime}"]
    found += [f"  {reason}" for reason in _reasons(status)]
    found.append(f"pid {status['pid']}")
    if status.get("uprobes") == "process":
        found.append("uprobes are opened by throughline-probes, as the agent may not")
    found += _section("Feature group", "State", _groups(status.get("groups", {})))
    programs = status.get("attached", {}).get("programs", [])
    rows = [
        (p.get("name", "?"), f"{p.get('type', '?')} at {p.get('where', '?')}") for p in programs
    ]
    found += _section("Program", "Attached as", rows or [("none", "")])
    if status.get("packets"):
        found += _section("Context in TCP options", "", _packets(status["packets"]))
    for group in GROUPS.values():
        if group.files and status.get(group.name):
            found += _section(group.files, "", _files(status[group.name]["files"]))
    preloads = node.preloads(status)
    if preloads:
        found += _section("Service of Node.js", "Preload", preloads)
    found += ["", *_services(status.get("services", {}))]
    parents = parents_of_calls(status.get("services", {}))
    if parents:
        found += _section("Service", "Parents of its calls", parents)
    found += _section("Export", "", _export(status.get("export", {})))
    counters = sorted(status.get("counters", {}).items())
    rows = [(name, str(total)) for name, total in counters if total]
    found += _section("Counter", "Total", rows or [("none", "")])
    return found


def _section(left: str, right: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    return ["", *(table(rows, head=(left, right)) or [left])]


def _reasons(status: Mapping[str, Any]) -> list[str]:
    """Why the agent is degraded; then what is absent without being a fault."""
    reasons = [f"{name} has been detached; restart the agent" for name in status.get("missing", [])]
    reasons += [
        f"group {name} is off: {group.get('reason')}; fix: {group.get('fix')}"
        for name, group in status.get("groups", {}).items()
        if isinstance(group, Mapping) and group.get("wanted") and group.get("state") != "on"
    ]
    reasons += [
        f"{cgroup} does not exist now; nothing in it is traced"
        for cgroup in status.get("absent_cgroups", [])
    ]
    return reasons


def _groups(groups: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, group in groups.items():
        state = group.get("state", "?") if isinstance(group, Mapping) else str(group)
        reason = group.get("reason") if isinstance(group, Mapping) else None
        rows.append((name, f"{state} ({reason})" if reason else state))
        without = group.get("without", ()) if isinstance(group, Mapping) else ()
        rows += [("", without_program(program)) for program in without]
    return rows


def without_program(program: Mapping[str, Any]) -> str:
    """A program that the kernel refuses, and what is not there without it."""
    return f"without {program['program']}: no {program['gives']} ({program['reason']})"


def _packets(packets: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which program writes the option on which connections. Interfaces alike are one row."""
    rows = [
        (
            "connection made since the agent started",
            "sock_ops at " + few(packets["new_connections"]),
        )
    ]
    alike: dict[str, list[str]] = {}
    for place in packets["older_connections"]:
        how = place["by"]
        if place["priority"] is not None:
            how += f" at priority {place['priority']}"
        alike.setdefault(how, []).append(place["interface"])
    rows += [("older connection", f"TC by {how}: {few(names)}") for how, names in alike.items()]
    rows += [(f"older connection by {n}", f"none: {why}") for n, why in packets["refused"].items()]
    rows.append(("written to and read from", few(packets["peers"])))
    return rows


def _files(files: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    rows = []
    for file in files:
        text = f"{file['processes']} processes, {len(file['programs'])} sites"
        if file.get("version"):
            text = f"{file['version']}, {text}"
        if "preloaded" in file:
            text += f", preload in {file['preloaded']}"
        if file.get("single_stepped"):  # the status may be that of an earlier release
            text += ", single-stepped"
        if file["refused"]:
            text = f"none: {file['refused']}"
        rows.append((file["path"], text))
    return rows or [("none is executed by a traced process", "")]


def _services(services: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, service in sorted(services.items()):
        for kind in ("server", "client"):
            row = service.get(kind)
            if row:
                numbers = (row.get("requests", 0), row.get("errors", 0), row.get("sampled", 0))
                rows.append((name, kind, *map(str, numbers)))
    head = ("Service", "Kind", "Requests", "Errors", "Sampled")
    return table(rows, head=head, right=(2, 3, 4)) or ["No service has been seen yet."]


def _export(export: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(name, str(value)) for name, value in export.items() if not isinstance(value, dict)]
    rows += [(f"dropped: {name}", str(n)) for name, n in export.get("dropped", {}).items()]
    return [row for row in rows if row[1]]


def _duration(seconds: float) -> str:
    whole = max(0, int(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    parts = ((days, "d"), (hours, "h"), (minutes, "m"), (rest, "s"))
    shown = [f"{value}{unit}" for value, unit in parts if value][:2]
    return " ".join(shown) or "0s"
