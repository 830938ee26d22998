# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Is the agent healthy: read from its own status, with a reason and the doctor's advice if not."""

from __future__ import annotations

import json

from .printable import printable


def group_state(value):
    """'on' or 'off' from a group of status or doctor, which may be a word or an object."""
    return value.get("state", "off") if isinstance(value, dict) else value


def is_missing(value):
    """Is a group off that should be on?"""
    unwanted = isinstance(value, dict) and value.get("wanted") is False
    return group_state(value) != "on" and not unwanted


def delay(status, *, pid, since):
    """Why this is not the answer of the agent that is waited for, or None.

    `pid` is systemd's main process; `since` (seconds since the epoch) is when the agent was last
    told to start or reload, so that an answer from before does not count.
    """
    if status is None:
        return "throughline status gives no answer"
    if not pid:
        return "systemd has no main process for it"
    if status["pid"] != pid:
        return f"status is of process {status['pid']}, but systemd runs process {pid}"
    if status["started_unix"] < since:
        return "it has not taken over the new release or configuration yet"
    return None


def lacking(status, *, groups):
    """What will not change while this agent runs, since it attaches each group once; or None.

    A group that the agent itself does not want is no fault: it is `auto`, and the host cannot give
    it (a kernel without uprobes for others), or there is nothing for it to do (no peers).
    """
    off = [name for name in groups if is_missing(status["groups"].get(name, "off"))]
    return f"group {', '.join(off)} is off" if off else None


def ailment(status, *, groups, pid, since):
    """What keeps the agent from counting as healthy, or None."""
    problem = delay(status, pid=pid, since=since) or lacking(status, groups=groups)
    if problem:
        return problem
    if not status["attached"]["programs"]:
        return "no program is attached"
    if not status["healthy"]:
        return "status says that it is not healthy"
    return None


def describe_failure(message, doctor, journal):
    """The message, the doctor's reasons and remedies for what is off, and the journal's end."""
    lines = [message]
    try:
        answer = json.loads(doctor)
    except ValueError:
        if doctor.strip():
            lines.append("throughline doctor: " + doctor.strip()[-500:])
    else:
        groups = answer.get("groups", {})
        off = {n: g for n, g in sorted(groups.items()) if g.get("wanted") and g["state"] != "on"}
        for name, group in off.items():
            lines.append(f"doctor: {name} is off: {group['reason']}. Remedy: {group['fix']}.")
        if groups and not off:
            lines.append("doctor: every wanted group works on this host.")
    if journal.strip():
        lines.append("journal:\n" + journal.strip())
    return printable("\n".join(lines), keep="\n")
