#!/usr/bin/python
# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Gives units of Node.js the preload, by a drop-in; restarts none of them."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: throughline_node
short_description: Units of Node.js have the preload that tells for which request a call is
version_added: "0.1.0"
author: throughline authors (@throughline)
description:
  - Writes the drop-in C(throughline-node.conf) for each of O(units), and removes it from all
    others. Options that a unit has in C(NODE_OPTIONS) stay.
  - Never restarts a unit. RV(restart) names those that run without it, or still with it.
  - A unit that could fail to start with it, or whose C(NODE_OPTIONS) would win, gets no drop-in.
    RV(refused) says why, and C(/etc/throughline/node-refused.json) for C(throughline status) and
    C(throughline doctor).
  - A service with the drop-in starts also where the agent has gone, or serves a release without the
    preload.
  - A template is judged by itself and by each of its instances that systemd has loaded.
options:
  units:
    description: Names of units. C(.service) may be left out. C(name@.service) is for all instances.
    type: list
    elements: str
    required: true
extends_documentation_fragment: [throughline.fleet.root]
attributes:
  check_mode:
    description: Says what it would do, and changes nothing.
    support: full
  diff_mode:
    description: Shows the drop-ins.
    support: full
"""

EXAMPLES = r"""
- name: Units of Node.js have the preload
  throughline.fleet.throughline_node:
    units: [shop.service]
"""

RETURN = r"""
restart:
  description:
    - Units that have to be restarted for a change to take effect; of a template, its instances. In
      check mode none for a change that was not made.
  returned: always
  type: list
  elements: str
refused:
  description: Unit to the reason why it gets no drop-in.
  returned: always
  type: dict
report:
  description: What an operator has to know or to do, a sentence for each unit.
  returned: always
  type: list
  elements: str
"""

import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.throughline.fleet.plugins.module_utils.files import read_file, write_file
from ansible_collections.throughline.fleet.plugins.module_utils.health import group_state
from ansible_collections.throughline.fleet.plugins.module_utils.node import (
    CREDENTIAL,
    DROP_IN,
    MARK,
    PROPERTIES,
    REFUSED,
    SOURCE,
    first,
    judge,
    parse_properties,
    process_options,
    refusals,
    shown_name,
    unit_name,
)
from ansible_collections.throughline.fleet.plugins.module_utils.printable import printable
from ansible_collections.throughline.fleet.plugins.module_utils.unit import read_status

RESTART = "restart it when it suits you"


def systemctl(module, *arguments):
    """Runs systemctl and returns its output; fails with its message where it fails."""
    code, out, err = module.run_command(["systemctl", *arguments])
    if code:
        module.fail_json(msg=f"systemctl {' '.join(arguments)}: {(err or out).strip()}", rc=code)
    return out


def systemd_version(module):
    """The release of systemd, 0 where it does not say."""
    found = re.search(r"\d+", systemctl(module, "show", "--property=Version"))
    return int(found.group()) if found else 0


def show(module, pattern, *properties):
    """The properties of each unit that a name or a pattern means."""
    out = systemctl(module, "show", pattern, f"--property={','.join(properties)}")
    return [parse_properties(block) for block in out.split("\n\n") if block.strip()]


def instances(unit):
    """The pattern of the loaded instances of a template, the name of another unit."""
    return unit.replace("@.service", "@*.service")


def described(module, unit):
    """The properties of a unit; of a template, those of each loaded instance, too."""
    found = show(module, shown_name(unit), *PROPERTIES)
    if instances(unit) != unit:
        found += show(module, instances(unit), *PROPERTIES)
    return found


def running(module, unit):
    """{name: id of the main process} of a unit that runs, or of the instances of a template."""
    found = show(module, instances(unit), "Id", "MainPID")
    pids = {first(block, "Id"): first(block, "MainPID") for block in found}
    return {name: pid for name, pid in pids.items() if pid not in ("", "0")}


def put(module, texts):
    """Writes or removes files. Returns the diff of each that changes, by its path."""
    diffs = {}
    for path, text in texts.items():
        before = read_file(path)
        if before == text:
            continue
        diffs[path] = {"before": before or "", "after": text or "", "after_header": str(path)}
        if not module.check_mode:
            write_file(path, text)
            if text is None and not any(path.parent.iterdir()):
                path.parent.rmdir()
    return diffs


def is_older(root, name):
    """Returns whether a service has another preload than the release, such as none."""
    copy = read_file(root / f"run/credentials/{name}/{CREDENTIAL}")
    source = read_file(root / SOURCE.lstrip("/"))
    return copy is not None and source is not None and copy != source


def tell(units, *, root):
    """(units to restart, sentences).

    `units` has {name: (id of the main process, has the drop-in, would get or lose it)}.
    """
    restart, report = [], []
    for name, (pid, has, would_change) in sorted(units.items()):
        options = process_options(pid)
        if options is None:
            continue
        loaded, said = MARK in options, None
        if would_change:
            if has and not loaded:
                report.append(f"{name} would have the preload after its next restart.")
            if loaded and not has:
                report.append(f"{name} would still run with the preload, until it is restarted.")
        elif has and not loaded:
            said = f"runs without the preload: {RESTART}"
        elif has and is_older(root, name):
            said = f"runs another preload than the release's: {RESTART}"
        elif loaded and not has:
            said = "still runs with the preload, until it is restarted"
        if said:
            restart.append(name)
            report.append(f"{name} {said}.")
    return restart, report


def node_is_off(module, root):
    """Returns whether the running agent says that the group `node` is off, or not wanted."""
    status = read_status(module.run_command, root / "opt/throughline/current") or {}
    groups = status.get("groups")
    return bool(groups) and group_state(groups.get("node", "off")) != "on"


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "required": True},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    root = Path(module.params["root"])
    directory = root / "etc/systemd/system"
    named = {name: unit_name(name.strip()) for name in module.params["units"]}
    wrong = [name for name, unit in named.items() if unit is None]
    if wrong:
        module.fail_json(
            msg=f"Found {printable(', '.join(wrong))} in throughline_node_services, required names"
            " of services. Remedy: write each as systemctl does, such as shop.service."
        )
    wanted = sorted(set(named.values()))
    present = {path.parent.name[: -len(".d")] for path in directory.glob(f"*.service.d/{DROP_IN}")}
    paths = {unit: directory / f"{unit}.d" / DROP_IN for unit in {*wanted, *present}}
    texts, refused, stale = dict.fromkeys(paths.values()), {}, False
    version = systemd_version(module)
    for unit in wanted:
        blocks = described(module, unit)
        texts[paths[unit]], reason = judge(blocks, version=version)
        stale = stale or any(first(block, "NeedDaemonReload") == "yes" for block in blocks)
        if reason:
            refused[unit] = printable(reason)
        if first(blocks[0], "LoadState") != "loaded":
            module.warn(f"{unit} gets no preload: {refused[unit]}.")
    diffs = put(module, texts)
    if not module.check_mode and (diffs or stale):
        systemctl(module, "daemon-reload")
        # systemd may have read other files only now
        late = {}
        for unit in set(wanted) - set(refused):
            blocks = described(module, unit)
            reason = judge(blocks, version=version)[1]
            if not reason and MARK not in first(blocks[0], "Environment"):
                reason = "something else sets NODE_OPTIONS, and wins over a drop-in"
            if reason:
                refused[unit] = printable(reason)
                late[paths[unit]] = texts[paths[unit]] = None
        if put(module, late):
            systemctl(module, "daemon-reload")
    diffs.update(put(module, {root / REFUSED.lstrip("/"): refusals(refused)}))
    units = {}
    for unit, path in paths.items():
        for name, pid in running(module, unit).items():
            _pid, had, would = units.get(name, (pid, False, False))
            has = texts[path] is not None
            units[name] = (pid, had or has, would or (module.check_mode and path in diffs))
    report = [f"{unit} gets no preload: {reason}." for unit, reason in sorted(refused.items())]
    restart, told = tell(units, root=root)
    report += told
    gets = sorted(unit for unit in paths if texts[paths[unit]] is not None)
    if gets and node_is_off(module, root):
        off = "the group `node` is off on this host, so the preload has no effect"
        report += [f"{unit}: {off}." for unit in gets]
    module.exit_json(
        changed=bool(diffs),
        restart=restart,
        refused=refused,
        report=report,
        diff=list(diffs.values()),
    )


if __name__ == "__main__":
    main()
