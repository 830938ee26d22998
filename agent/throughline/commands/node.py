"""Which services of Node.js have the preload, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

GIVES = "its calls would have the request that made them as parent"
_WORDS = {
    "active": "active",
    "not_restarted": "configured, but the service runs without it: restart it when it suits you",
    "removed": "not configured any more, active until the service is restarted",
    "refused": "none: {reason}",
    "not_configured": "none: name it in throughline_node_services, and " + GIVES,
    "no_service": "none: it is no service of the host's systemd",
    "unknown": "the agent may not look for its drop-in",
}


def units(status: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name, what is known) of each unit, once for each program of Node.js that it runs."""
    node = status.get("node") or {}
    for file in node.get("files", ()):
        yield from sorted(file.get("units", {}).items())


def preloads(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A row for each unit: its name, and whether it has the preload."""
    rows = {}
    for name, unit in units(status):
        words = _WORDS.get(unit["preload"], unit["preload"])
        rows[name or "(no unit)"] = words.format(reason=unit["reason"])
    return sorted(rows.items())


def to_restart(status: Mapping[str, Any]) -> list[str]:
    """The units that have to be restarted to get the preload."""
    return sorted({name for name, unit in units(status) if unit["preload"] == "not_restarted"})
