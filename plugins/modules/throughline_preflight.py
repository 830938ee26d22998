#!/usr/bin/python
# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""What this host can run, read from files and said per feature group.

Runs on every Python that ansible-core supports on a host (3.8 and later), because "your Python is
too old for the agent" is one of the things it has to say.
"""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: throughline_preflight
short_description: Says which throughline feature groups can work on a host, and why others cannot
version_added: "0.1.0"
author: throughline authors (@throughline)
description:
  - Reads the kernel version, BTF, lockdown mode, cgroup layout, mounts, Python and systemd, and
    gives a verdict for each feature group. Nothing on the host is changed.
  - The result has the shape of C(throughline doctor --json) and is also set as the fact
    C(throughline_preflight).
options:
  groups:
    description: Feature groups that are wanted on the host.
    type: list
    elements: str
    choices: [observe, headers, packets, tls, go, go_write]
    default: [observe, headers, packets, tls, go]
  required_mode:
    description:
      - The least that the host must be able to do. V(network) means O(groups) observe and headers,
        V(observe) only observe, V(write) that go_write is possible too, whether wanted or not.
      - The module fails below it and says what was found, what is required and what to do.
    type: str
    choices: [write, network, observe, none]
    default: none
  allow_sys_admin:
    description:
      - Whether the agent may have CAP_SYS_ADMIN where the kernel asks for it for tls and go.
      - Asking for go_write in O(groups) is consent on hosts that can do it.
    type: bool
    default: false
  doctor:
    description: Ask the installed agent (C(throughline doctor --json)) where there is one.
    type: bool
    default: false
  root:
    description: Directory that stands for C(/); for tests with a recorded tree.
    type: path
    default: /
extends_documentation_fragment: [throughline.fleet.reads]
"""

EXAMPLES = r"""
- name: Feature groups of the host are known
  throughline.fleet.throughline_preflight:
    groups: [observe, headers]
    required_mode: network

- name: Mode of the host is shown
  ansible.builtin.debug:
    var: ansible_facts.throughline_preflight.mode
"""

RETURN = r"""
ansible_facts:
  description: The verdict, as the fact throughline_preflight.
  returned: always
  type: dict
  contains:
    throughline_preflight:
      description: The verdict.
      type: dict
      returned: always
      sample:
        source: preflight
        version: null
        mode: network
        host: {kernel: 6.1.0-31-amd64, lockdown: integrity, cgroup_layout: unified}
        groups:
          observe: {state: "on", wanted: true, possible: true, reason: "", fix: ""}
"""

import json
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.throughline.fleet.plugins.module_utils.host import (
    describe_host,
    installed_agent,
    read_kernel_options,
)
from ansible_collections.throughline.fleet.plugins.module_utils.uprobes import need
from ansible_collections.throughline.fleet.plugins.module_utils.verdict import (
    GROUPS,
    MODES,
    judge,
    mode_of,
    shortfall,
)


def ask_doctor(run):
    """(doctor --json of the installed agent or None, why not)."""
    launcher = "/opt/throughline/current/bin/throughline"
    config = "/etc/throughline/config.yaml"
    if not os.access(launcher, os.X_OK):
        return None, None
    _code, out, err = run([launcher, "doctor", "--json", "--config", config])
    try:
        return json.loads(out), None
    except ValueError:
        said = (err or out).strip().splitlines()
        return None, said[-1][-300:] if said else "it printed nothing"


def merge(verdict, answer):
    """The doctor's answer, and what only preflight looks at: could the host do a group?

    A group that is switched off, or that the installed release does not have, was not tried: what
    keeps the host from it is then ours to say.
    """
    groups = {}
    for name, group in answer["groups"].items():
        ours = verdict["groups"].get(name, {})
        groups[name] = {**ours, **group}
        if ours and ours["reason"] and not group["wanted"] and not group["fix"]:
            both = f"{group['reason']}; {ours['reason']}" if group["reason"] else ours["reason"]
            groups[name].update(reason=both, fix=ours["fix"])
    return {**answer, "host": {**verdict["host"], **answer["host"]}, "groups": groups}


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "groups": {
                "type": "list",
                "elements": "str",
                "choices": list(GROUPS),
                "default": ["observe", "headers", "packets", "tls", "go"],
            },
            "required_mode": {"type": "str", "choices": list(reversed(MODES)), "default": "none"},
            "allow_sys_admin": {"type": "bool", "default": False},
            "doctor": {"type": "bool", "default": False},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    root = module.params["root"]
    host = {**describe_host(root, module.run_command), "uprobes": need(root)}
    options = read_kernel_options(root, host["kernel"])
    groups = judge(
        host,
        options,
        wanted=module.params["groups"],
        allow_sys_admin=module.params["allow_sys_admin"],
    )
    verdict = {
        "source": "preflight",
        "version": None,
        "host": host,
        "groups": groups,
        "mode": mode_of(groups),
        "agent": installed_agent(root),
    }
    if module.params["doctor"]:
        answer, problem = ask_doctor(module.run_command)
        if answer:
            verdict.update(merge(verdict, answer), source="doctor")
        elif problem:
            verdict["doctor_error"] = problem
    message = shortfall(verdict, module.params["required_mode"])
    facts = {"throughline_preflight": verdict}
    if message:
        module.fail_json(msg=message)
    module.exit_json(changed=False, ansible_facts=facts)


if __name__ == "__main__":
    main()
