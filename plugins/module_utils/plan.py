# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The plan of throughline_service: which files, links and action bring a host to a release.

It follows from the state of the host and not from other tasks of the run, so the next run completes
one that was cut short. Making a plan changes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from .credentials import scrub
from .files import read_file
from .groups import DEFAULT_GROUPS
from .health import group_state
from .host import UNIT
from .printable import printable
from .release import linked_release, name_release
from .served import config_text, serving_entry, wanted_previous
from .unit import (
    PROBE_UNITS,
    UNIT_FILE,
    check_config,
    read_properties,
    read_status,
    running_release,
)


class PlanError(Exception):
    """The host cannot get the release. The message says found, required and remedy."""


class Request(NamedTuple):
    """The parameters of throughline_service that a plan follows from."""

    state: str  # "release" or "previous"
    release: str | None
    groups: list[str] | None
    config: str
    base: Path
    config_changed: bool
    check_mode: bool
    probe_process: bool | None = None  # None: as it is

    @property
    def going_back(self):
        """Whether an operator wants the release before."""
        return self.state == "previous"


class Plan(NamedTuple):
    """What to write, to link and to tell systemd."""

    action: str  # "start", "restart", "reload", "replace" or "none"
    release: str
    files: dict[Path, str | None]  # None: the file is to be removed
    files_before: dict[Path, str | None]
    links: dict[str, str | None]
    links_before: dict[str, str | None]
    needs_daemon_reload: bool  # before any file is written
    enabled: bool

    @property
    def renews_probe_process(self):
        """Whether the process that opens uprobes comes, goes, or is of another release."""
        return self.links["current"] != self.links_before["current"] or any(
            self.files.get(path) != self.files_before.get(path) for path in PROBE_UNITS
        )

    @property
    def changes(self):
        """Whether there is anything to do."""
        return (
            self.files != self.files_before
            or self.links != self.links_before
            or self.action != "none"
            or not self.enabled
        )


def make_plan(run, request, record):
    """The plan for a request. `run` is AnsibleModule.run_command. Raises PlanError."""
    base = request.base
    release = release_before(base, record) if request.going_back else request.release
    files = wanted_files(run, request, record, release)
    files_before = {path: read_file(path) for path in files}
    links = {
        "previous": wanted_previous(base, record, release, going_back=request.going_back),
        "current": release,
    }
    properties = read_properties(run)
    return Plan(
        action=choose_action(
            run, request, properties, record, release=release, unit_changed=files_before != files
        ),
        release=release,
        files=files,
        files_before=files_before,
        links=links,
        links_before={name: linked_release(base, name) for name in links},
        needs_daemon_reload=properties["NeedDaemonReload"] == "yes",
        enabled=properties["UnitFileState"] == "enabled",
    )


def release_before(base, record):
    """The release before the serving one; the serving one where the host has gone back already."""
    current, entry = linked_release(base, "current"), serving_entry(record)
    if current is None:
        raise PlanError(
            "Found no agent, required an agent with a previous release."
            " Remedy: leave the host out (--limit), or install the agent with site.yml."
        )
    if entry and entry["rolled_back_from"] and current == record["serving"]:
        return current
    previous = entry["previous"] if entry else linked_release(base, "previous")
    if previous is None or not (base / "releases" / previous).is_dir():
        raise PlanError(
            f"Found only {name_release(base, current)}, required a previous release to go"
            " back to. Remedy: leave the host out (--limit), or run upgrade.yml with"
            " throughline_bundle set to the bundle of the release that you want."
        )
    return previous


def refusal(run, request, release):
    """Why a release does not accept the present configuration, or None."""
    config = request.config
    if not Path(config).is_file():
        return None
    code, out, err = check_config(run, request.base / "releases" / release, config)
    said = printable(scrub((err or out).strip(), read_file(config)), keep="\n")
    return said or f"exit code {code}" if code else None


def wanted_files(run, request, record, release):
    """{path: text} of the files that the release needs.

    Raises PlanError where the release refuses the configuration, and its own cannot be restored.
    """
    base = request.base
    unit = read_file(base / "releases" / release / "systemd" / UNIT)
    if unit is None:
        if request.check_mode:  # the release is not unpacked yet
            return {}
        raise PlanError(
            f"Found no unit in release {release} below {base}, required an unpacked release."
            " Remedy: unpack it first (throughline_release)."
        )
    files = {UNIT_FILE: unit, **probe_units(request, release)}
    if release in (record["serving"], linked_release(base, "current")):
        return files
    problem = None if request.config_changed else refusal(run, request, release)
    if problem is None:
        return files
    kept = record["releases"].get(release)
    lost = None
    if request.going_back and kept:
        files.update((Path(path), text) for path, text in kept["files"].items())
        if kept["config"] is None:
            return files
        text, lost = config_text(base, kept)
        if lost is None:
            return {**files, Path(kept["config"]["path"]): text}
    raise PlanError(
        f"Found a configuration that {name_release(base, release)} refuses, required one that"
        f" it accepts. The agent was not touched.\n{problem}\n"
        + (f"The configuration that it had cannot be brought back: {lost}.\n" if lost else "")
        + "Remedy: change throughline_config and run site.yml with this bundle, which replaces"
        " both at once."
    )


def probe_units(request, release):
    """{path: text} of the units of the process that opens uprobes; None where there shall be none.

    A release that does not know the process has none, either.
    """
    wanted = request.probe_process
    if wanted is None:
        wanted = all(path.exists() for path in PROBE_UNITS)
    folder = request.base / "releases" / release / "systemd"
    return {path: read_file(folder / path.name) if wanted else None for path in PROBE_UNITS}


def expected_groups(run, request, record, release):
    """The feature groups that must be on in the end."""
    if request.groups is not None:
        return request.groups
    entry = serving_entry(record)
    if entry is None:
        status = read_status(run, request.base / "current") or {}
        states = {name: group_state(value) for name, value in status.get("groups", {}).items()}
        return [name for name in states if states[name] == "on"] or list(DEFAULT_GROUPS)
    known = record["releases"].get(release, entry)["groups"]
    if request.going_back:  # the older release need not have groups that came later
        return [name for name in entry["groups"] if name in known]
    return entry["groups"]


def choose_action(run, request, properties, record, *, release, unit_changed):
    """The action of a plan. "replace" kills the agent, whose programs stay, and starts the new."""
    running = running_release(properties["MainPID"])
    if running not in (None, release) and record["serving"] not in (None, running):
        return "replace"  # an unfinished run started it, and it has never been healthy
    if properties["ActiveState"] not in ("active", "reloading"):
        return "start"
    if unit_changed or properties["NeedDaemonReload"] == "yes":
        # A stop would detach the programs. An upgrade must not interrupt propagation.
        return "restart" if running in (None, release) else "replace"
    if running != release:
        # The running agent checks the configuration before it executes the other release.
        unable = running is None or refusal(run, request, running) is not None
        return "restart" if unable else "reload"
    if request.config_changed:
        return "reload"
    config = Path(request.config)
    modified = config.stat().st_mtime if config.is_file() else 0.0
    status = read_status(run, request.base / "current") or {}
    if modified > status.get("started_unix", float("inf")) + 1:
        return "reload"  # an earlier run changed the configuration and ended before this step
    return "none"
