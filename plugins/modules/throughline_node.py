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
    RV(refused) says why.
  - A service with the drop-in starts also where the agent has gone, or serves a release without the
    preload.
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
  description: Units that have to be restarted for a change to take effect.
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

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.throughline.fleet.plugins.module_utils.files import read_file, write_file
from ansible_collections.throughline.fleet.plugins.module_utils.node import (
    DROP_IN,
    MARK,
    PROPERTIES,
    drop_in,
    first,
    obstacle,
    own_options,
    parse_properties,
    process_options,
    read_text,
    shown_name,
    unit_name,
)
from ansible_collections.throughline.fleet.plugins.module_utils.printable import printable


def systemctl(module, *arguments):
    """Runs systemctl and returns its output; fails with its message where it fails."""
    code, out, err = module.run_command(["systemctl", *arguments])
    if code:
        module.fail_json(msg=f"systemctl {' '.join(arguments)}: {(err or out).strip()}", rc=code)
    return out


def show(module, unit):
    """The properties of a unit."""
    wanted = f"--property={','.join(PROPERTIES)}"
    return parse_properties(systemctl(module, "show", shown_name(unit), wanted))


def unit_files(properties, ours):
    """The texts of the unit's files in the order of systemd, without our drop-in."""
    paths = [first(properties, "FragmentPath"), *first(properties, "DropInPaths").split()]
    return [read_text(path) for path in paths if path and path != str(ours)]


def judge(module, unit, ours):
    """(the text of the unit's drop-in or None, why it has none or None)."""
    properties = show(module, unit)
    try:
        options = own_options(unit_files(properties, ours))
    except ValueError as error:
        return None, f"its Environment= could not be read ({error})"
    reason = obstacle(properties, options)
    return (None, reason) if reason else (drop_in(options), None)


def running(module, unit):
    """The ids of the main processes of a unit that runs, or of the instances of a template."""
    pattern = unit.replace("@.service", "@*.service")
    out = systemctl(module, "show", pattern, "--property=MainPID,ActiveState")
    pids = []
    for block in out.split("\n\n"):
        pid = first(parse_properties(block), "MainPID")
        if pid not in ("", "0"):
            pids.append(pid)
    return pids


def preloaded(module, unit):
    """Of each main process of the unit: whether it was started with the preload."""
    options = [process_options(pid) for pid in running(module, unit)]
    return [MARK in found for found in options if found is not None]


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "required": True},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    directory = Path(module.params["root"]) / "etc/systemd/system"
    named = {name: unit_name(name.strip()) for name in module.params["units"]}
    wrong = [name for name, unit in named.items() if unit is None]
    if wrong:
        module.fail_json(
            msg=f"Found {printable(', '.join(wrong))} in throughline_node_services, required names"
            " of services. Remedy: write each as systemctl does, such as shop.service."
        )
    wanted = sorted(set(named.values()))
    present = {path.parent.name[: -len(".d")] for path in directory.glob(f"*.service.d/{DROP_IN}")}
    texts, refused, diff, changed = {}, {}, [], False
    for unit in wanted:
        ours = directory / f"{unit}.d" / DROP_IN
        texts[ours], reason = judge(module, unit, ours)
        if reason:
            refused[unit] = printable(reason)
    for unit in sorted(present - set(wanted)):
        texts[directory / f"{unit}.d" / DROP_IN] = None
    for path, text in texts.items():
        before = read_file(path)
        if before == text:
            continue
        changed = True
        diff.append({"before": before or "", "after": text or "", "after_header": str(path)})
        if not module.check_mode:
            write_file(path, text)
            if text is None and not any(path.parent.iterdir()):
                path.parent.rmdir()
    if changed and not module.check_mode:
        systemctl(module, "daemon-reload")
    for unit in wanted:
        text = texts[directory / f"{unit}.d" / DROP_IN]
        is_known = text and not (changed and module.check_mode)
        if is_known and MARK not in first(show(module, unit), "Environment"):
            refused[unit] = "another drop-in sets NODE_OPTIONS behind ours, which wins"
    restart, report = [], []
    for unit in sorted(set(wanted) | present):
        has = directory / f"{unit}.d" / DROP_IN in texts and unit not in refused and unit in wanted
        loaded = preloaded(module, unit)
        if unit in refused:
            report.append(f"{unit} gets no preload: {refused[unit]}.")
        if has and not all(loaded):
            restart.append(unit)
            report.append(f"{unit} runs without the preload: restart it when it suits you.")
        if not has and any(loaded):
            restart.append(unit)
            report.append(f"{unit} still runs with the preload, until it is restarted.")
    module.exit_json(changed=changed, restart=restart, refused=refused, report=report, diff=diff)


if __name__ == "__main__":
    main()
