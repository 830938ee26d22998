# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The report of check.yml on all hosts, and its table for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.throughline.fleet.plugins.module_utils.groups import GROUPS, MODES
from ansible_collections.throughline.fleet.plugins.module_utils.printable import printable

HOST = ("kernel", "arch", "systemd", "lockdown", "cgroup_layout", "btf")
LONGEST = 4000  # characters of one text


def harmless(value: Any) -> Any:
    """An answer of a host, safe for a terminal: each text on one line, no control characters.

    An attacker may control a host, and then chooses its answer.
    """
    if isinstance(value, str):
        return printable(" ".join(value[:LONGEST].splitlines()))
    if isinstance(value, Mapping):
        return {harmless(str(key)): harmless(content) for key, content in value.items()}
    if isinstance(value, Sequence):
        return [harmless(content) for content in value]
    return value


def verdict_of(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a host: its verdict, or why there is none."""
    verdict = result.get("ansible_facts", {}).get("throughline_preflight")
    if verdict is None:
        reachable = not result.get("unreachable", False)
        said = str(result.get("module_stderr", "")).strip().splitlines()
        message = ": ".join([str(result.get("msg", "no answer")).strip(), *said[-1:]])
        message = harmless(message)
        return {"name": name, "reachable": reachable, "error": message, "mode": "unknown"}
    try:
        return entry_of(name, harmless(verdict))
    except (AttributeError, KeyError, TypeError, ValueError):
        message = "its answer is not a verdict of throughline_preflight"
        return {"name": name, "reachable": True, "error": message, "mode": "unknown"}


def entry_of(name: str, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a host with a verdict.

    Raises AttributeError, KeyError, TypeError or ValueError for a verdict of another shape.
    """
    if not isinstance(verdict["groups"], Mapping):
        raise TypeError("groups")
    groups = {group: cell(verdict, group) for group in GROUPS if group in verdict["groups"]}
    host = {key: verdict["host"][key] for key in HOST}
    return {
        "name": name,
        "reachable": True,
        "error": verdict.get("doctor_error"),
        "source": verdict["source"],
        "version": verdict["version"],
        "tried_version": verdict.get("tried_version"),
        "untried": verdict.get("untried", ""),
        "release": verdict.get("agent", {}).get("release"),
        "mode": verdict["mode"] if verdict["mode"] in MODES else "unknown",
        "host": {**verdict["host"], **host},
        "groups": groups,
        "reasons": reasons(groups),
    }


def cell(verdict: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One group on one host, with a word for the table.

    on: it works now, as the agent says. works: the doctor of a release has tried it on the host.
    untried: no obstacle is known, and nothing was tried. possible: no obstacle is known, and the
    group is not wanted (throughline_groups, the agent's configuration). off: it does not work.
    """
    group = verdict["groups"][name]
    idle = not group["wanted"] and not group["fix"]  # it is switched off, which is no fault
    state = group["state"]
    if state == "on" and verdict["source"] == "doctor":
        # The doctor of an installed agent that does not run has tried the group.
        word = "on" if verdict.get("agent", {}).get("running", True) else "works"
    elif state == "on" and verdict["source"] == "trial":
        word = "works"
    elif state == "on" and group["wanted"]:
        word = state = "untried"
    elif idle and group.get("possible"):
        word = "possible"
    else:
        word = "off"
    why = group["reason"] if word == "off" else without(group) or group.get("note", "")
    return {**group, "state": state, "word": word, "why": why}


def without(group: Mapping[str, Any]) -> str:
    """The programs of a group that the kernel refuses, and what the group lacks without them."""
    return "; ".join(
        f"without {program['program']}: no {program['gives']} ({program['reason']})"
        for program in group.get("without", ())
    )


def reasons(groups: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Why groups are off, and the remedy. Groups with the same reason share an entry."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for name, group in groups.items():
        if group["why"]:
            alike.setdefault((group["word"], group["why"], group["fix"]), []).append(name)
    return [
        {"groups": names, "word": word, "why": why, "fix": fix}
        for (word, why, fix), names in alike.items()
    ]


def mode_of(host: Mapping[str, Any]) -> str:
    """The host's mode, with a question mark where nothing was tried."""
    return f"{host['mode']}?" if host["untried"] else str(host["mode"])


def agent_of(host: Mapping[str, Any]) -> str:
    """The installed agent's version; '?' where the agent gives no answer, '-' without an agent."""
    return str(host["version"] or ("?" if host["release"] else "-"))


def word_of(host: Mapping[str, Any], group: str) -> str:
    """The word for the table; '-' for a group that the installed release does not know."""
    found = host["groups"].get(group)
    return str(found["word"]) if found else "-"


def throughline_report(results: Mapping[str, Mapping[str, Any]], generated: str) -> dict[str, Any]:
    """The report from {host name: result of throughline_preflight}: hosts, groups, a summary."""
    hosts = [verdict_of(name, results[name]) for name in results]
    counts = Counter(host["mode"] for host in hosts)
    return {
        "generated": generated,
        "groups": list(GROUPS),
        "summary": {mode: counts[mode] for mode in (*MODES, "unknown") if counts[mode]},
        "hosts": hosts,
    }


def throughline_table(report: Mapping[str, Any]) -> list[str]:
    """The report as lines for a terminal: the matrix, then each reason with its remedy."""
    rows = [["HOST", "MODE", "AGENT", *report["groups"]]]
    notes = []
    for host in report["hosts"]:
        if "groups" not in host:
            state = "failed" if host["reachable"] else "unreachable"
            rows.append([host["name"], state, "-", *["-"] * len(report["groups"])])
            notes.append(f"{host['name']}: {state}: {host['error']}")
            continue
        words = [word_of(host, name) for name in report["groups"]]
        rows.append([host["name"], mode_of(host), agent_of(host), *words])
        if host["error"]:
            notes.append(f"{host['name']}: doctor gave no answer: {host['error']}")
        elif host["untried"]:
            notes.append(f"{host['name']}: nothing was tried: {host['untried']}")
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
