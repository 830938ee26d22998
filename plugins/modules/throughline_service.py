#!/usr/bin/python
# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Brings the agent to a release, and rolls back where it does not become healthy."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: throughline_service
short_description: The agent runs a release, and its programs are attached
version_added: "0.1.0"
author: throughline authors (@throughline)
description:
  - Points the link C(current) at the release, installs the unit of the release, and enables and
    starts it.
  - A new release or configuration is taken over with C(systemctl reload), which does not interrupt
    propagation. Where a new release has another unit, the old agent is killed instead, which leaves
    its programs to the new one. The agent is restarted only where nothing but its unit or a drop-in
    has changed, or where the running release would refuse the configuration.
  - What to do follows from the state of the host, and not from other tasks of the run. So the next
    run completes one that was cut short.
  - Waits until C(throughline status --json) says healthy, all O(groups) are on and programs are
    attached, and for 2 seconds more. It does not wait for O(timeout) once the agent has failed for
    good, has ended three times, or has said that a group is off.
  - Where the agent does not become healthy, the module restores what was healthy last on this host
    (release, links, unit, capabilities and configuration), and B(fails) with the doctor's answer
    and with what it did. A release that refuses the present configuration is not started.
  - Removes all releases but the current and the previous one once the agent is healthy.
options:
  state:
    description:
      - V(release) runs O(release). V(previous) goes back to the release before the serving one. It
        keeps the configuration where that release accepts it. Otherwise it restores the
        configuration of that release, with the credentials of the present one.
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
      - Feature groups that must be on. By default, those that were on when the agent was healthy
        last.
    type: list
    elements: str
  config:
    description: Configuration file of the agent.
    type: path
    default: /etc/throughline/config.yaml
  config_changed:
    description: Whether this run has changed the configuration, or would change it in check mode.
    type: bool
    default: false
  probe_process:
    description:
      - Whether the host has the units of the process that opens uprobes. By default those that it
        has stay, as the release has them.
    type: bool
  timeout:
    description:
      - Seconds that the release has to become healthy. A restored release has as many again, and
        at least 30.
    type: int
    default: 30
extends_documentation_fragment: [throughline.fleet.releases]
attributes:
  check_mode:
    description: Says what it would do, and does not wait.
    support: full
  diff_mode:
    description: Shows the unit, the links, and the configuration without its credentials.
    support: full
"""

EXAMPLES = r"""
- name: Agent runs the release and is healthy
  throughline.fleet.throughline_service:
    release: "{{ __throughline_release.release }}"
    groups: [observe, headers]

- name: Agent runs the release before
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
  description: The release that serves and the one before it, in a sentence.
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
  description: Whether the release that was healthy last serves again.
  returned: when the agent did not become healthy
  type: bool
"""

import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.throughline.fleet.plugins.module_utils.credentials import hide, scrub
from ansible_collections.throughline.fleet.plugins.module_utils.files import read_file, write_file
from ansible_collections.throughline.fleet.plugins.module_utils.health import describe_failure
from ansible_collections.throughline.fleet.plugins.module_utils.host import UNIT
from ansible_collections.throughline.fleet.plugins.module_utils.plan import (
    PlanError,
    Request,
    expected_groups,
    make_plan,
)
from ansible_collections.throughline.fleet.plugins.module_utils.release import (
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
    described,
    drop_replaced,
    keep_replaced,
    note_served,
    read_served,
    serving_entry,
)
from ansible_collections.throughline.fleet.plugins.module_utils.unit import (
    DROP_IN,
    PROBE_UNITS,
    UNIT_FILE,
    UnitError,
    ask,
    renew_probe_process,
    replace,
    systemctl,
    tell,
    wait_until_healthy,
)


def apply(run, request, plan):
    """Carries the plan out. Raises UnitError and OSError."""
    base = request.base
    if Path(request.config) in plan.files:
        keep_replaced(base, read_served(base))
    written = [write_file(path, text) for path, text in plan.files.items()]
    for name, release in plan.links.items():
        point(base, name, release)
    if any(written) or plan.needs_daemon_reload:
        systemctl(run, "daemon-reload")
    if plan.renews_probe_process:
        renew_probe_process(run)
    if not plan.enabled:
        systemctl(run, "enable", "--quiet", UNIT)
    if plan.action == "replace":
        replace(run)
    elif plan.action != "none":
        tell(run, plan.action)


def attempt(run, request, plan, *, groups, timeout):
    """Carries the plan out and waits. Returns (status, problem or None)."""
    since = int(time.time()) if plan.action != "none" else 0
    try:
        if plan.changes:
            apply(run, request, plan)
        return wait_until_healthy(
            run,
            directory=request.base / "releases" / plan.release,
            groups=groups,
            since=since,
            timeout=timeout,
            **({"settle": 0.0} if plan.action == "none" else {}),
        )
    except (UnitError, OSError) as error:
        return None, f"could not be started: {error}"


def ask_about_failure(run, request, release, *, since):
    """The output of the release's doctor, and the end of the journal."""
    directory = request.base / "releases" / release
    _code, out, err = ask(run, directory, "doctor", "--json", "--config", request.config)
    command = ["journalctl", "--unit", UNIT, f"--since=@{since}", "--lines=15", "--no-pager"]
    _code, journal, _err = run([*command, "--output=cat"])
    texts = [read_file(path) for path in (request.config, request.base / REPLACED)]
    return scrub(out or err, *texts), scrub(journal, *texts)


def restore(run, request, record, release, problem, *, since, timeout):
    """Rolls back after a failure. Returns (whether the old one is healthy, the whole message)."""
    base = request.base
    told = ask_about_failure(run, request, release, since=since)
    if serving_entry(record) is None:
        done, outcome = False, "Nothing to go back to: no release has been healthy here before."
    elif is_in_place(base, record):
        done, outcome = False, "Nothing to go back to: this is what was healthy last."
    else:
        done, outcome = roll_back(run, base, record, timeout=timeout)
    message = f"Agent {name_release(base, release)} {problem}.\n{outcome}"
    return done, describe_failure(message, *told)


def note(request, record, plan, *, groups):
    """Records that the release is healthy, and the files that it runs with."""
    base, before = request.base, record["serving"]
    origin = None
    if before == plan.release:
        origin = serving_entry(record)["rolled_back_from"]
    elif request.going_back:
        origin = name_release(base, before)
    entry = {
        "previous": plan.links["previous"],
        "rolled_back_from": origin,
        "groups": groups,
        "files": {str(path): read_file(path) for path in (UNIT_FILE, DROP_IN, *PROBE_UNITS)},
        "config": described(request.config, read_file(request.config)),
    }
    note_served(base, plan.release, entry)
    drop_replaced(base)


def outcome(request, record, release):
    """The release that serves and the one before it, in a sentence."""
    base, before = request.base, record["serving"]
    sentence = f"{name_release(base, release)} serves"
    if before in (None, release):
        origin = serving_entry(record)["rolled_back_from"] if before else None
        return f"{sentence} since it was rolled back from {origin}" if origin else sentence
    relation = "rolled back from" if request.going_back else "before it"
    return f"{sentence}, {relation} {name_release(base, before)}"


def diff(request, plan):
    """The changes of files and links, without the credentials of the configuration."""
    changes = []
    for path, after in plan.files.items():
        before, after = plan.files_before[path] or "", after or ""
        if path == Path(request.config):
            before, after = hide(before), hide(after, before=before)
        changes.append({"before": before, "after": after, "after_header": str(path)})
    links = {
        "before": show_links(request.base, plan.links_before),
        "after": show_links(request.base, plan.links),
    }
    return [*changes, links]


def show_links(base, links):
    """The links as text for a diff."""
    return "".join(
        f"{name} -> {name_release(base, links[name]) if links[name] else 'none'}\n"
        for name in sorted(links)
    )


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
            "probe_process": {"type": "bool"},
            "timeout": {"type": "int", "default": 30},
        },
        required_if=[("state", "release", ("release",))],
        supports_check_mode=True,
    )
    run, timeout = module.run_command, module.params["timeout"]
    request = Request(
        state=module.params["state"],
        release=module.params["release"],
        groups=module.params["groups"],
        config=module.params["config"],
        base=Path(module.params["base"]),
        config_changed=module.params["config_changed"],
        check_mode=module.check_mode,
        probe_process=module.params["probe_process"],
    )
    record = read_served(request.base)
    try:
        plan = make_plan(run, request, record)
    except PlanError as error:
        module.fail_json(msg=str(error))
    result = {
        "changed": plan.changes,
        "action": plan.action,
        "pruned": [],
        "outcome": outcome(request, record, plan.release),
        "diff": diff(request, plan),
    }
    if module.check_mode:
        module.exit_json(**result)
    groups = expected_groups(run, request, record, plan.release)
    if record["serving"] is None:
        record = presumed(request.base, plan.release)
    begin = int(time.time())
    result["status"], problem = attempt(run, request, plan, groups=groups, timeout=timeout)
    if problem is not None:
        done, message = restore(
            run, request, record, plan.release, problem, since=begin, timeout=timeout
        )
        module.fail_json(msg=message, rolled_back=done)
    note(request, record, plan, groups=groups)
    result["pruned"] = prune(request.base)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
