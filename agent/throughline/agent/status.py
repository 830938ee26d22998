"""The agent's status file: written every second, read by `throughline status` and health gates."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from throughline.text import printable, to_json

STALE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class StatusWriter:
    """Replaces the status file atomically; whoever reads it sees a whole one."""

    path: Path

    def write(self, status: Mapping[str, Any]) -> None:
        """Write `status` (see docs for its shape); raises OSError."""
        partial = self.path.with_name(f".{self.path.name}.partial")
        text = to_json(status)
        try:
            partial.write_text(text, encoding="ascii")
            partial.chmod(0o644)
            partial.replace(self.path)
        except OSError as error:
            where = f"status cannot be written: {self.path}"
            raise OSError(error.errno, f"{where}: {error.strerror}") from error

    def remove(self) -> None:
        """The agent has stopped; OSError only when the file is there and cannot be removed."""
        self.path.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any] | None:
    """The status of the agent that runs now, or None when there is none.

    None is also the answer for a file that is stale (older than 5 seconds), whose process is gone,
    or that is no status at all.
    """
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
        updated, pid = float(status["updated_unix"]), int(status["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # A clock that was set back makes the file young for ever, so the process is asked as well.
    if time.time() - updated > STALE_SECONDS or not _is_alive(pid):
        return None
    return status if isinstance(status, dict) else None


def last(path: Path) -> dict[str, Any]:
    """What the agent that ran last has written, however old; {} when there is nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def sampled(found: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    """How many spans a status says were sampled, by service and kind."""
    services = found.get("services")
    counts: dict[tuple[str, str], int] = {}
    for name, service in services.items() if isinstance(services, dict) else ():
        for kind in ("server", "client"):
            row = service.get(kind) if isinstance(service, dict) else None
            count = row.get("sampled") if isinstance(row, dict) else None
            if isinstance(count, int):
                counts[name, kind] = count
    return counts


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return pid > 0


def notify(message: str) -> None:
    """sd_notify(3): tells systemd, when it listens. Raises OSError."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    if message == "RELOADING=1":
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        message = f"{message}\nMONOTONIC_USEC={usec}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        connection.sendto(message.encode(), address)


def exit_code(status: Mapping[str, Any] | None) -> int:
    """0 running and healthy, 1 running but degraded, 3 not running."""
    if status is None:
        return 3
    return 0 if status.get("healthy") is True else 1


def format_text(status: Mapping[str, Any]) -> str:
    """The status for people."""
    healthy = "healthy" if status.get("healthy") else "degraded"
    uptime = _duration(float(status["updated_unix"]) - float(status.get("started_unix", 0)))
    lines = [f"throughline {status.get('version', '?')}: {healthy}, up {uptime}"]
    lines += [f"  {reason}" for reason in _reasons(status)]
    lines.append(f"pid {status['pid']}")
    lines += ["", *_table("Feature group", "State", _group_rows(status.get("groups", {})))]
    programs = status.get("attached", {}).get("programs", [])
    rows = [
        (p.get("name", "?"), f"{p.get('type', '?')} at {p.get('where', '?')}") for p in programs
    ]
    lines += ["", *_table("Program", "Attached as", rows or [("none", "")])]
    if status.get("packets"):
        lines += ["", *_table("Context in TCP options", "", _packets(status["packets"]))]
    if status.get("tls"):
        lines += ["", *_table("TLS in file", "", _files(status["tls"]["files"]))]
    if status.get("go"):
        lines += ["", *_table("Go program", "", _files(status["go"]["files"]))]
    lines += ["", *_services(status.get("services", {}))]
    export = status.get("export", {})
    rows = [(name, str(value)) for name, value in export.items() if not isinstance(value, dict)]
    rows += [(f"dropped: {name}", str(n)) for name, n in export.get("dropped", {}).items()]
    lines += ["", *_table("Export", "", [row for row in rows if row[1]])]
    counters = status.get("counters", {})
    rows = [(name, str(total)) for name, total in sorted(counters.items()) if total]
    lines += ["", *_table("Counter", "Total", rows or [("none", "")])]
    return "\n".join(map(printable, lines))


def _reasons(status: Mapping[str, Any]) -> list[str]:
    """Why the agent is degraded, and what is not wrong but not there either."""
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


def _group_rows(groups: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, group in groups.items():
        state = group.get("state", "?") if isinstance(group, Mapping) else str(group)
        reason = group.get("reason") if isinstance(group, Mapping) else None
        rows.append((name, f"{state} ({reason})" if reason else state))
        without = group.get("without", ()) if isinstance(group, Mapping) else ()
        rows += [("", f"without {p['program']}: no {p['gives']} ({p['reason']})") for p in without]
    return rows


def _packets(packets: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Who writes the option on which kind of connection; interfaces alike are one row."""
    rows = [
        (
            "connection made since the agent started",
            "sock_ops at " + _few(packets["new_connections"]),
        )
    ]
    alike: dict[str, list[str]] = {}
    for place in packets["older_connections"]:
        how = place["by"]
        if place["priority"] is not None:
            how += f" at priority {place['priority']}"
        alike.setdefault(how, []).append(place["interface"])
    rows += [("older connection", f"TC by {how}: {_few(names)}") for how, names in alike.items()]
    rows += [(f"older connection by {n}", f"none: {why}") for n, why in packets["refused"].items()]
    rows.append(("written to and read from", _few(packets["peers"])))
    return rows


def _files(files: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    rows = []
    for file in files:
        text = f"{file['processes']} processes, {len(file['programs'])} sites"
        if file.get("version"):
            text = f"{file['version']}, {text}"
        if file["dear"]:
            text += ", single-stepped: dear"
        if file["refused"]:
            text = f"none: {file['refused']}"
        rows.append((file["path"], text))
    return rows or [("none is executed by a traced process", "")]


def _few(names: Sequence[str]) -> str:
    """A list that stays a line."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "none") + more


def _services(services: Mapping[str, Any]) -> list[str]:
    if not services:
        return ["No service has been seen yet."]
    width = max(len("Service"), *(len(name) for name in services))
    titles = f"{'Requests':>10} {'Errors':>8} {'Sampled':>8}"
    lines = [f"{'Service':<{width}}  {'Kind':<6} {titles}"]
    for name, service in sorted(services.items()):
        for kind in ("server", "client"):
            row = service.get(kind)
            if row:
                numbers = (row.get("requests", 0), row.get("errors", 0), row.get("sampled", 0))
                lines.append("{:<{}}  {:<6} {:>10} {:>8} {:>8}".format(name, width, kind, *numbers))
    return lines


def _table(left: str, right: str, rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(left), *(len(row[0]) for row in rows)) if rows else len(left)
    return [f"{first:<{width}}  {second}".rstrip() for first, second in [(left, right), *rows]]


def _duration(seconds: float) -> str:
    whole = max(0, int(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    parts = ((days, "d"), (hours, "h"), (minutes, "m"), (rest, "s"))
    shown = [f"{value}{unit}" for value, unit in parts if value][:2]
    return " ".join(shown) or "0s"
