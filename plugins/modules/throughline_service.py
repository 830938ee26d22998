#!/usr/bin/python
# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The agent runs the wanted release and traces; if it does not, the one before serves again."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: throughline_service
short_description: The agent runs a release, and its programs are attached
version_added: "0.1.0"
author: throughline authors (@throughline)
description:
  - Points C(current) at the release, installs the unit from it, and enables and starts it.
  - A new release or configuration is taken over with C(systemctl reload), without a gap in
    propagation. Where a new release brings another unit, the old agent is killed instead, which
    leaves its programs to the new one. Only a change of the unit or of its drop-ins alone restarts
    the agent, or a configuration that the running release would refuse.
  - What has to be done is read off the host and not off this run's other tasks, so a run that was
    cut short is completed by the next.
  - Waits until C(throughline status --json) says healthy, all O(groups) are on and programs are
    attached, and for 2 seconds more. Does not wait for O(timeout) once the agent has failed for
    good, has ended three times, or has said that a group is off.
  - If it does not get there, what was healthy last on this host comes back (release, links, unit,
    capabilities and configuration), and the module B(fails) with the doctor's answer and with what
    it did. A release that refuses the present configuration is not tried.
  - Removes all releases but the current and the previous one once the agent is healthy.
options:
  state:
    description:
      - V(release) runs O(release). V(previous) goes back to the release before the one that serves,
        and keeps the configuration if that release accepts it, else brings its own back, with the
        present one's credentials.
      - Going back is done once. Afterwards there is no previous release, and a second run changes
        nothing.
    type: str
    choices: [release, previous]
    default: release
  release:
    description: Name of the release below C(releases/), for O(state=release).
    type: str
  groups:
    description:
      - Feature groups that must be on. Without it, those that were on when it was healthy last.
    type: list
    elements: str
  config:
    description: Configuration file of the agent.
    type: path
    default: /etc/throughline/config.yaml
  base:
    description: Directory that holds the releases.
    type: path
    default: /opt/throughline
  config_changed:
    description: The configuration was, or in check mode would be, changed in this run.
    type: bool
    default: false
  timeout:
    description:
      - Seconds that the release has to become healthy. One that comes back has as many again, and
        30 at least.
    type: int
    default: 30
attributes:
  check_mode:
    description: Says what it would do; waits for nothing.
    support: full
  diff_mode:
    description: Shows the unit, the links, and a configuration without its credentials.
    support: full
"""

EXAMPLES = r"""
- name: Agent runs the release and traces
  throughline.fleet.throughline_service:
    release: "{{ __throughline_release.release }}"
    groups: [observe, headers]

- name: Agent runs the release that it ran before
  throughline.fleet.throughline_service:
    state: previous
"""

RETURN = r"""
action:
  description: What was done to the agent.
  returned: on success
  type: str
  sample: none, start, restart, reload or replace
outcome:
  description: The release that serves, and the one that it came from, in a sentence.
  returned: on success
  type: str
  sample: 0.2.0 (release 5d41402abc4b) serves, before it 0.1.0 (release 7d793037a076)
status:
  description: Output of throughline status --json.
  returned: when the agent was waited for
  type: dict
pruned:
  description: Releases that were removed.
  returned: on success
  type: list
  elements: str
rolled_back:
  description: Whether what was healthy last serves again.
  returned: when the agent did not become healthy
  type: bool
"""

import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.throughline.fleet.plugins.module_utils.credentials import hide, scrub
from ansible_collections.throughline.fleet.plugins.module_utils.health import (
    describe_failure,
    group_state,
)
from ansible_collections.throughline.fleet.plugins.module_utils.host import UNIT
from ansible_collections.throughline.fleet.plugins.module_utils.printable import printable
from ansible_collections.throughline.fleet.plugins.module_utils.release import (
    linked_release,
    name_release,
    point,
    prune,
)
from ansible_collections.throughline.fleet.plugins.module_utils.rollback import (
    is_in_place,
    presumed,
    roll_back,
)
from ansible_collections.throughline.fleet.plugins.module_utils.served import (
    REPLACED,
    config_text,
    described,
    drop_replaced,
    keep_replaced,
    note_served,
    read_file,
    read_served,
    serving_entry,
    wanted_previous,
    write_file,
)
from ansible_collections.throughline.fleet.plugins.module_utils.unit import (
    DROP_IN,
    UNIT_FILE,
    UnitError,
    ask,
    read_properties,
    read_status,
    replace,
    running_release,
    systemctl,
    tell,
    wait_until_healthy,
)

DEFAULT_GROUPS = ["observe", "headers", "packets", "tls", "go"]


def release_before(module, base, record):
    """The release to go back to; the one that serves, where that has been done."""
    current, entry = linked_release(base, "current"), serving_entry(record)
    if current is None:
        module.fail_json(
            msg="Found no agent, required one that has a previous release."
            " Remedy: leave the host out (--limit), or install the agent with site.yml."
        )
    if entry and entry["rolled_back_from"] and current == record["serving"]:
        return current
    previous = entry["previous"] if entry else linked_release(base, "previous")
    if previous is None or not (base / "releases" / previous).is_dir():
        module.fail_json(
            msg=f"Found only {name_release(base, current)}, required a previous release to go"
            " back to. Remedy: leave the host out (--limit), or run upgrade.yml with"
            " throughline_bundle set to the bundle of the release that you want."
        )
    return previous


def refusal(module, base, release):
    """Why a release does not accept the present configuration, or None."""
    config = module.params["config"]
    if not Path(config).is_file():
        return None
    code, out, err = ask(module.run_command, base / "releases" / release, "config", "check", config)
    said = printable(scrub((err or out).strip(), read_file(config)), keep="\n")
    return said or f"exit code {code}" if code else None


def wanted_files(module, base, record, release):
    """{path: text} that the release needs. Fails where it refuses the configuration."""
    unit = read_file(base / "releases" / release / "systemd" / UNIT)
    if unit is None:
        if module.check_mode:  # not unpacked yet
            return {}
        module.fail_json(
            msg=f"Found no unit in release {release} below {base}, required an unpacked release."
            " Remedy: unpack it first (throughline_release)."
        )
    files = {UNIT_FILE: unit}
    if release in (record["serving"], linked_release(base, "current")):
        return files
    problem = None if module.params["config_changed"] else refusal(module, base, release)
    if problem is None:
        return files
    kept = record["releases"].get(release)
    lost = None
    if module.params["state"] == "previous" and kept:
        files.update((Path(path), text) for path, text in kept["files"].items())
        if kept["config"] is None:
            return files
        text, lost = config_text(base, kept)
        if lost is None:
            return {**files, Path(kept["config"]["path"]): text}
    return module.fail_json(
        msg=f"Found a configuration that {name_release(base, release)} refuses, required one that"
        f" it accepts. The agent was not touched.\n{problem}\n"
        + (f"The configuration that it had cannot be brought back: {lost}.\n" if lost else "")
        + "Remedy: change throughline_config and run site.yml with this bundle, which brings both"
        " at once."
    )


def expected_groups(module, base, record, release):
    """Feature groups that must be on in the end."""
    if module.params["groups"] is not None:
        return module.params["groups"]
    entry = serving_entry(record)
    if entry is None:
        status = read_status(module.run_command, base / "current") or {}
        states = {name: group_state(value) for name, value in status.get("groups", {}).items()}
        return [name for name in states if states[name] == "on"] or DEFAULT_GROUPS
    known = record["releases"].get(release, entry)["groups"]
    if module.params["state"] == "previous":  # it need not have what came after it
        return [name for name in entry["groups"] if name in known]
    return entry["groups"]


def choose_action(module, base, properties, record, *, release, unit_changed):
    """start, restart, reload, none, or replace: kill it, whose programs go on, and start anew."""
    running = running_release(properties["MainPID"])
    if running not in (None, release) and record["serving"] not in (None, running):
        return "replace"  # an unfinished run left it, and it has never been healthy
    if properties["ActiveState"] not in ("active", "reloading"):
        return "start"
    if unit_changed or properties["NeedDaemonReload"] == "yes":
        # A stop would detach the programs: an upgrade must not end propagation for a second.
        return "restart" if running in (None, release) else "replace"
    if running != release:
        # The agent that runs looks at the configuration before it executes the other release.
        unable = running is None or refusal(module, base, running) is not None
        return "restart" if unable else "reload"
    if module.params["config_changed"]:
        return "reload"
    config = Path(module.params["config"])
    modified = config.stat().st_mtime if config.is_file() else 0.0
    status = read_status(module.run_command, base / "current") or {}
    if modified > status.get("started_unix", float("inf")) + 1:
        return "reload"  # an earlier run changed it and did not come this far
    return "none"


def apply(module, base, properties, plan):
    """Carry the plan out. Raises UnitError and OSError."""
    if Path(module.params["config"]) in plan["files"]:
        keep_replaced(base, read_served(base))
    written = [write_file(path, text) for path, text in plan["files"].items()]
    for name, release in plan["links"].items():
        point(base, name, release)
    if any(written) or properties["NeedDaemonReload"] == "yes":
        systemctl(module.run_command, "daemon-reload")
    if properties["UnitFileState"] != "enabled":
        systemctl(module.run_command, "enable", "--quiet", UNIT)
    if plan["action"] == "replace":
        replace(module.run_command)
    elif plan["action"] != "none":
        tell(module.run_command, plan["action"])


def attempt(module, base, properties, plan):
    """Apply the plan and wait: (status, problem or None)."""
    since = int(time.time()) if plan["action"] != "none" else 0
    try:
        if plan["changed"]:
            apply(module, base, properties, plan)
        return wait_until_healthy(
            module.run_command,
            directory=base / "releases" / plan["links"]["current"],
            groups=plan["groups"],
            since=since,
            timeout=module.params["timeout"],
            **({"settle": 0.0} if plan["action"] == "none" else {}),
        )
    except (UnitError, OSError) as error:
        return None, f"could not be started: {error}"


def ask_about_failure(module, base, release, *, since):
    """What the doctor of a release and the journal have to say."""
    config = module.params["config"]
    directory = base / "releases" / release
    _code, out, err = ask(module.run_command, directory, "doctor", "--json", "--config", config)
    command = ["journalctl", "--unit", UNIT, f"--since=@{since}", "--lines=15", "--no-pager"]
    _code, journal, _err = module.run_command([*command, "--output=cat"])
    texts = [read_file(path) for path in (config, base / REPLACED)]
    return scrub(out or err, *texts), scrub(journal, *texts)


def fail(module, base, record, plan, problem, *, since):
    """Bring back what was healthy last, and say why and what was done."""
    release = plan["links"]["current"]
    told = ask_about_failure(module, base, release, since=since)
    if serving_entry(record) is None:
        done, outcome = False, "Nothing to go back to: no release has been healthy here before."
    elif is_in_place(base, record):
        done, outcome = False, "Nothing to go back to: this is what was healthy last."
    else:
        done, outcome = roll_back(
            module.run_command, base, record, timeout=module.params["timeout"]
        )
    message = f"Agent {name_release(base, release)} {problem}.\n{outcome}"
    module.fail_json(msg=describe_failure(message, *told), rolled_back=done)


def note(module, base, record, plan):
    """Write down that the agent is healthy, and with what."""
    release, before = plan["links"]["current"], record["serving"]
    origin = None
    if before == release:
        origin = serving_entry(record)["rolled_back_from"]
    elif module.params["state"] == "previous":
        origin = name_release(base, before)
    config = module.params["config"]
    entry = {
        "previous": plan["links"]["previous"],
        "rolled_back_from": origin,
        "groups": plan["groups"],
        "files": {str(path): read_file(path) for path in (UNIT_FILE, DROP_IN)},
        "config": described(config, read_file(config)),
    }
    note_served(base, release, entry)
    drop_replaced(base)


def came_from(base, record, release, *, going_back):
    """What served before, as the end of a sentence."""
    before = record["serving"]
    if before in (None, release):
        origin = serving_entry(record)["rolled_back_from"] if before else None
        return f" since it was rolled back from {origin}" if origin else ""
    return f", {'rolled back from' if going_back else 'before it'} {name_release(base, before)}"


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["release", "previous"], "default": "release"},
            "release": {"type": "str"},
            "groups": {"type": "list", "elements": "str"},
            "config": {"type": "path", "default": "/etc/throughline/config.yaml"},
            "base": {"type": "path", "default": "/opt/throughline"},
            "config_changed": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 30},
        },
        required_if=[("state", "release", ("release",))],
        supports_check_mode=True,
    )
    base, going_back = Path(module.params["base"]), module.params["state"] == "previous"
    record = read_served(base)
    release = release_before(module, base, record) if going_back else module.params["release"]
    files = wanted_files(module, base, record, release)
    links = {
        "previous": wanted_previous(base, record, release, going_back=going_back),
        "current": release,
    }
    properties = read_properties(module.run_command)
    present = {path: read_file(path) for path in files}
    links_before = {name: linked_release(base, name) for name in links}
    action = choose_action(
        module, base, properties, record, release=release, unit_changed=present != files
    )
    enabled = properties["UnitFileState"] == "enabled"
    plan = {
        "action": action,
        "changed": present != files or links_before != links or action != "none" or not enabled,
        "files": files,
        "links": links,
    }
    result = {
        "changed": plan["changed"],
        "action": action,
        "pruned": [],
        "outcome": f"{name_release(base, release)} serves"
        + came_from(base, record, release, going_back=going_back),
        "diff": [
            *(
                shown(path, present[path] or "", text or "", config=module.params["config"])
                for path, text in files.items()
            ),
            {"before": show_links(base, links_before), "after": show_links(base, links)},
        ],
    }
    if module.check_mode:
        module.exit_json(**result)
    plan["groups"] = expected_groups(module, base, record, release)
    if record["serving"] is None:
        record = presumed(base, release)
    begin = int(time.time())
    result["status"], problem = attempt(module, base, properties, plan)
    if problem is not None:
        fail(module, base, record, plan, problem, since=begin)
    note(module, base, record, plan)
    result["pruned"] = prune(base)
    module.exit_json(**result)


def shown(path, before, after, *, config):
    """The change of a file as a diff has it, without the configuration's credentials."""
    if path == Path(config):
        before, after = hide(before), hide(after, before=before)
    return {"before": before, "after": after, "after_header": str(path)}


def show_links(base, links):
    """The links as text for a diff."""
    return "".join(
        f"{name} -> {name_release(base, links[name]) if links[name] else 'none'}\n"
        for name in sorted(links)
    )


if __name__ == "__main__":
    main()
