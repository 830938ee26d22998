#!/usr/bin/python
# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The agent runs the wanted release with the installed configuration, and traces."""

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
    propagation. Only a change of the unit or of its drop-ins restarts the agent.
  - What has to be done is read off the host and not off this run's other tasks, so a run that was
    cut short is completed by the next.
  - Waits until C(throughline status --json) says healthy, all O(groups) are on and programs are
    attached. Fails with the doctor's answer otherwise.
  - Removes all releases but the current and the previous one.
options:
  release:
    description: Name of the release below C(releases/).
    type: str
    required: true
  groups:
    description: Feature groups that must be on.
    type: list
    elements: str
    default: [observe, headers]
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
    description: Seconds to wait for a healthy agent.
    type: int
    default: 30
attributes:
  check_mode:
    description: Says what it would do; waits for nothing.
    support: full
  diff_mode:
    description: Shows the unit and the link.
    support: full
"""

EXAMPLES = r"""
- name: Agent runs the release and traces
  throughline.fleet.throughline_service:
    release: "{{ __throughline_release.release }}"
    groups: [observe, headers]
"""

RETURN = r"""
action:
  description: What was done to the agent.
  returned: always
  type: str
  sample: none, start, restart or reload
status:
  description: Output of throughline status --json.
  returned: when the agent was waited for
  type: dict
pruned:
  description: Releases that were removed.
  returned: always
  type: list
  elements: str
"""

import json
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.throughline.fleet.plugins.module_utils.health import (
    ailment,
    describe_failure,
)
from ansible_collections.throughline.fleet.plugins.module_utils.host import UNIT
from ansible_collections.throughline.fleet.plugins.module_utils.release import (
    linked_release,
    prune,
    switch,
)

UNIT_FILE = Path("/etc/systemd/system") / UNIT
POLL_SECONDS = 0.25
PROPERTIES = ("ActiveState", "MainPID", "NeedDaemonReload", "UnitFileState")


def systemctl(module, *arguments):
    """Run systemctl; its own message is the module's when it fails."""
    code, out, err = module.run_command(["systemctl", *arguments])
    if code:
        fail(module, f"systemctl {' '.join(arguments)}: {(err or out).strip()}")
    return out


def fail(module, message):
    """Fail with what doctor and the journal have to say."""
    launcher = Path(module.params["base"]) / "current/bin/throughline"
    doctor, journal = "", ""
    if launcher.is_file():
        command = [str(launcher), "doctor", "--json", "--config", module.params["config"]]
        _code, doctor, _err = module.run_command(command)
        command = ["journalctl", "--unit", UNIT, "--lines=15", "--no-pager", "--output=cat"]
        _code, journal, _err = module.run_command(command)
    module.fail_json(msg=describe_failure(message, doctor, journal))


def read_properties(module):
    """systemd's view of the unit."""
    out = systemctl(module, "show", UNIT, "--property=" + ",".join(PROPERTIES))
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


def read_status(module):
    """The agent's status --json, or None while it does not answer."""
    launcher = Path(module.params["base"]) / "current/bin/throughline"
    _code, out, _err = module.run_command([str(launcher), "status", "--json"])
    try:
        return json.loads(out)
    except ValueError:
        return None


def modified(path):
    """When a file or link was last changed, in seconds since the epoch; 0 where it is missing."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def choose_action(module, properties, *, unit_changed, release_changed):
    """start, restart, reload or none."""
    if properties["ActiveState"] not in ("active", "reloading"):
        return "start"
    if unit_changed or properties["NeedDaemonReload"] == "yes":
        return "restart"
    if release_changed or module.params["config_changed"]:
        return "reload"
    status = read_status(module) or {}
    inputs = (Path(module.params["config"]), Path(module.params["base"]) / "current")
    if max(modified(path) for path in inputs) > status.get("started_unix", float("inf")) + 1:
        return "reload"  # an earlier run changed them and did not come this far
    return "none"


def apply(module, action, properties, unit_text):
    """Carry the decision out."""
    if unit_text is not None:
        work = UNIT_FILE.with_name(f".{UNIT_FILE.name}.new")
        work.write_text(unit_text, encoding="utf-8")
        work.chmod(0o644)
        work.rename(UNIT_FILE)
    switch(module.params["base"], module.params["release"])
    if unit_text is not None or properties["NeedDaemonReload"] == "yes":
        systemctl(module, "daemon-reload")
    if properties["UnitFileState"] != "enabled":
        systemctl(module, "enable", "--quiet", UNIT)
    if action in ("start", "restart"):
        module.run_command(["systemctl", "reset-failed", UNIT])
    if action != "none":
        systemctl(module, action, UNIT)


def wait_until_healthy(module, *, since):
    """The agent's status once it is healthy and newer than `since`; fails after the timeout."""
    deadline = time.monotonic() + module.params["timeout"]
    while True:
        status = read_status(module)
        pid = int(read_properties(module)["MainPID"])
        problem = ailment(status, groups=module.params["groups"], pid=pid, since=since)
        if problem is None:
            return status
        if time.monotonic() > deadline:
            fail(module, f"Agent is not healthy after {module.params['timeout']} s: {problem}.")
        time.sleep(POLL_SECONDS)


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "release": {"type": "str", "required": True},
            "groups": {"type": "list", "elements": "str", "default": ["observe", "headers"]},
            "config": {"type": "path", "default": "/etc/throughline/config.yaml"},
            "base": {"type": "path", "default": "/opt/throughline"},
            "config_changed": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    base, release = Path(module.params["base"]), module.params["release"]
    source = base / "releases" / release / "systemd" / UNIT
    if not source.is_file() and not module.check_mode:
        module.fail_json(msg=f"Found no {source}. Remedy: unpack the release first.")
    wanted = source.read_text(encoding="utf-8") if source.is_file() else None
    present = UNIT_FILE.read_text(encoding="utf-8") if UNIT_FILE.is_file() else ""
    previous = linked_release(base, "current")
    properties = read_properties(module)
    unit_changed = wanted is not None and wanted != present
    action = choose_action(
        module, properties, unit_changed=unit_changed, release_changed=previous != release
    )
    enabled = properties["UnitFileState"] == "enabled"
    changed = unit_changed or previous != release or action != "none" or not enabled
    result = {
        "changed": changed,
        "action": action,
        "pruned": [],
        "diff": [
            {"before": present, "after": present if wanted is None else wanted},
            {"before": f"current -> {previous}\n", "after": f"current -> {release}\n"},
        ],
    }
    if module.check_mode:
        module.exit_json(**result)
    since = int(time.time()) if action != "none" else 0
    if changed:
        apply(module, action, properties, wanted if unit_changed else None)
    result["status"] = wait_until_healthy(module, since=since)
    result["pruned"] = prune(base)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
