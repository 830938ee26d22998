# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The agent's health, from its own status; the message for an agent that is not healthy."""

from __future__ import annotations

import json

from .printable import printable


def group_state(value):
    """'on' or 'off' of a group in status or doctor, where it is a word or an object."""
    return value.get("state", "off") if isinstance(value, dict) else value


def is_missing(value):
    """Returns whether a group is off although the agent wants it."""
    unwanted = isinstance(value, dict) and value.get("wanted") is False
    return group_state(value) != "on" and not unwanted


def delay(status, *, pid, since):
    """Why this status is not from the new start or reload of the agent, or None.

    `pid` is the unit's main process. `since` (seconds since the epoch) is when the agent was told
    to start or reload.
    """
    if status is None:
        return "throughline status gives no answer"
    if not pid:
        return "systemd has no main process for the unit"
    if status["pid"] != pid:
        return f"status is of process {status['pid']}, but systemd runs process {pid}"
    if status["started_unix"] < since:
        return "it has not taken over the new release or configuration yet"
    return None


def lacking(status, *, groups):
    """The wanted groups that are off, in a sentence, or None. Waiting does not turn them on.

    A group that the agent does not want is no fault: it is `auto`, and the host cannot run it (the
    kernel refuses uprobes), or it has nothing to do (no peers).
    """
    off = [name for name in groups if is_missing(status["groups"].get(name, "off"))]
    return f"group {', '.join(off)} is off" if off else None


def ailment(status, *, groups, pid, since):
    """Why the agent does not count as healthy, or None."""
    problem = delay(status, pid=pid, since=since) or lacking(status, groups=groups)
    if problem:
        return problem
    if not status["attached"]["programs"]:
        return "no program is attached"
    if not status["healthy"]:
        return "status says that it is not healthy"
    return None


def describe_failure(message, doctor, journal):
    """The message, the doctor's reasons and remedies for groups that are off, and the journal."""
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
