# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""From the verdicts of all hosts to one report, and from the report to a table for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

GROUPS = ("observe", "headers", "packets", "tls", "go", "go_write")
MODES = ("write", "network", "observe", "none", "unknown")


def verdict_of(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """One host's entry: its verdict, or why there is none."""
    verdict = result.get("ansible_facts", {}).get("throughline_preflight")
    if verdict is None:
        reachable = not result.get("unreachable", False)
        said = str(result.get("module_stderr", "")).strip().splitlines()
        message = ": ".join([str(result.get("msg", "no answer")).strip(), *said[-1:]])
        return {"name": name, "reachable": reachable, "error": message, "mode": "unknown"}
    groups = {group: cell(verdict, group) for group in GROUPS if group in verdict["groups"]}
    return {
        "name": name,
        "reachable": True,
        "error": verdict.get("doctor_error"),
        "source": verdict["source"],
        "version": verdict["version"],
        "release": verdict.get("agent", {}).get("release"),
        "mode": verdict["mode"],
        "host": verdict["host"],
        "groups": groups,
        "reasons": reasons(groups),
    }


def cell(verdict: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One group on one host, with a word for the table.

    on: works now. ready: will work once the agent is installed. possible: could work, but nobody
    wants it (throughline_groups, the agent's configuration). off: cannot work, or does not.
    """
    group = verdict["groups"][name]
    idle = not group["wanted"] and not group["fix"]  # switched off, which nothing is to cure
    if group["state"] == "on" and (verdict["source"] == "doctor" or group["wanted"]):
        word = "on" if verdict["source"] == "doctor" else "ready"
    elif idle and group.get("possible"):
        word = "possible"
    else:
        word = "off"
    why = group["reason"] if word == "off" else group.get("note", "")
    return {**group, "word": word, "why": why}


def reasons(groups: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Why groups are off and what to do; groups with the same reason share an entry."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for name, group in groups.items():
        if group["why"]:
            alike.setdefault((group["word"], group["why"], group["fix"]), []).append(name)
    return [
        {"groups": names, "word": word, "why": why, "fix": fix}
        for (word, why, fix), names in alike.items()
    ]


def agent_of(host: Mapping[str, Any]) -> str:
    """The installed agent's version; '?' where it is installed but does not say."""
    return str(host["version"] or ("?" if host["release"] else "-"))


def throughline_report(results: Mapping[str, Mapping[str, Any]], generated: str) -> dict[str, Any]:
    """From {host name: result of throughline_preflight} to hosts, groups and a summary."""
    hosts = [verdict_of(name, results[name]) for name in results]
    counts = Counter(host["mode"] for host in hosts)
    return {
        "generated": generated,
        "groups": list(GROUPS),
        "summary": {mode: counts[mode] for mode in MODES if counts[mode]},
        "hosts": hosts,
    }


def throughline_table(report: Mapping[str, Any]) -> list[str]:
    """The report as lines for a terminal: the matrix, then each reason with its remedy."""
    rows = [["HOST", "MODE", "AGENT", *report["groups"]]]
    notes = []
    for host in report["hosts"]:
        if "groups" not in host:
            state = "failed" if host["reachable"] else "unreachable"
            rows.append([host["name"], state, "-", *("-" for _ in report["groups"])])
            notes.append(f"{host['name']}: {state}: {host['error']}")
            continue
        words = [host["groups"][name]["word"] for name in report["groups"]]
        rows.append([host["name"], host["mode"], agent_of(host), *words])
        if host["error"]:
            notes.append(f"{host['name']}: doctor gave no answer: {host['error']}")
        notes += [
            f"{host['name']}: {', '.join(entry['groups'])} {entry['word']}: {entry['why']}"
            + (f" -> {entry['fix']}" if entry["fix"] else "")
            for entry in host["reasons"]
        ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return [table[0], "-" * len(table[0]), *table[1:], *([""] if notes else []), *notes]


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Any]:
        """Names in templates."""
        return {"throughline_report": throughline_report, "throughline_table": throughline_table}
