# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Bring back what was healthy last on a host."""

from __future__ import annotations

import time

from .release import linked_release, name_release, point
from .served import (
    config_text,
    drop_replaced,
    is_config_in_place,
    read_file,
    serving_entry,
    write_file,
)
from .unit import UNIT_FILE, UnitError, replace, systemctl, wait_until_healthy

# However little a new release gets: nothing is won by giving up what served before.
LEAST_SECONDS = 30


def presumed(base, release):
    """The record of a host without one, where another release is to follow.

    What the link `current` leads to is taken to have been healthy, with the unit that is there.
    """
    current = linked_release(base, "current")
    unit = read_file(UNIT_FILE)
    if current in (None, release) or unit is None or not (base / "releases" / current).is_dir():
        return {"serving": None, "releases": {}}
    entry = {
        "previous": linked_release(base, "previous"),
        "rolled_back_from": None,
        "groups": ["observe"],
        "files": {str(UNIT_FILE): unit},
        "config": None,
    }
    return {"serving": current, "releases": {current: entry}}


def is_in_place(base, record):
    """True when links and files are those that were healthy last."""
    entry = serving_entry(record)
    return (
        linked_release(base, "current") == record["serving"]
        and all(read_file(path) == text for path, text in entry["files"].items())
        and is_config_in_place(entry)
    )


def restore_config(base, entry):
    """Brings the configuration of an entry back: what to add about it, "" where all is in place."""
    if not is_config_in_place(entry):
        text, problem = config_text(base, entry)
        if problem is not None:
            return f" But the configuration is the new one: {problem}."
        write_file(entry["config"]["path"], text)
    drop_replaced(base)
    if is_config_in_place(entry):
        return ""
    return " The configuration has the credentials of the new one."


def roll_back(run, base, record, *, timeout):
    """Bring it back and wait: (whether it is healthy, what was done in a sentence)."""
    release, entry = record["serving"], serving_entry(record)
    name = name_release(base, release)
    begin, remark = time.time(), ""
    try:
        for path, text in entry["files"].items():
            write_file(path, text)
        remark = restore_config(base, entry)
        point(base, "current", release)
        point(base, "previous", entry["previous"])
        systemctl(run, "daemon-reload")
        replace(run)
        _status, problem = wait_until_healthy(
            run,
            directory=base / "releases" / release,
            groups=entry["groups"],
            since=int(begin),
            timeout=max(timeout, LEAST_SECONDS),
        )
    except (UnitError, OSError) as error:
        problem = f"could not be started: {error}"
    if problem is None:
        return True, (
            f"Rolled back: {name} serves again and is healthy after {time.time() - begin:.0f} s,"
            f" with the unit, capabilities and configuration that it had.{remark}"
        )
    return False, (
        f"THE ROLLBACK FAILED TOO: {name} {problem}.{remark} Links, unit, capabilities and"
        " configuration are as they were, as far as they could be written; pinned programs go on"
        " propagating."
        " Remedy: cure the reason (systemctl status throughline, throughline doctor), then run"
        " site.yml again; or take the agent off with uninstall.yml."
    )
