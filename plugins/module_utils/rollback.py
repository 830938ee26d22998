# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Rollback to the release, unit, capabilities and configuration that were healthy last."""

from __future__ import annotations

import time

from .files import read_file, write_file
from .release import linked_release, name_release, point
from .served import config_text, drop_replaced, is_config_in_place, serving_entry
from .unit import (
    UNIT_FILE,
    UnitError,
    renew_probe_process,
    replace,
    systemctl,
    wait_until_healthy,
)

# The least time that the restored release gets, however short the timeout of the new one is.
LEAST_SECONDS = 30


def presumed(base, release):
    """A record for a host that has none, before `release` replaces what it runs.

    It takes the release that the link `current` names for healthy, with the present unit.
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
    """Returns whether link `current` and the files are those that were healthy last."""
    entry = serving_entry(record)
    return (
        linked_release(base, "current") == record["serving"]
        and all(read_file(path) == text for path, text in entry["files"].items())
        and is_config_in_place(entry)
    )


def restore_config(base, entry):
    """Restores the configuration of an entry. Returns a remark for the operator, "" for none."""
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
    """Restores what was healthy last and waits. Returns (whether it is healthy, a sentence)."""
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
        renew_probe_process(run)
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
        " configuration are the old ones, as far as they could be written; pinned programs still"
        " propagate context."
        " Remedy: remove the cause (systemctl status throughline, throughline doctor), then run"
        " site.yml again; or remove the agent with uninstall.yml."
    )
