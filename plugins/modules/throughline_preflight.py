#!/usr/bin/python
# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""A verdict on this host for each feature group, from facts, a doctor or a trial.

It runs on every Python that ansible-core supports on a host (3.8 and later), because it has to say
which hosts have too old a Python for the agent.
"""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: throughline_preflight
short_description: Gives a verdict on a host for each feature group of throughline
version_added: "0.1.0"
author: throughline authors (@throughline)
description:
  - Reads the kernel version, BTF, lockdown mode, cgroup layout, mounts, Python and systemd, and
    gives a verdict for each feature group. Changes nothing on the host.
  - The kernel may refuse a group although no obstacle is found here. O(bundle) tries whether it
    works, and an installed agent knows it (O(doctor)).
  - The result has the shape of C(throughline doctor --json). It is also the fact
    C(throughline_preflight).
options:
  groups:
    description: Feature groups that are wanted on the host.
    type: list
    elements: str
    choices: [observe, headers, packets, tls, go, go_write, java, python, proxies, ruby, node]
    default: [observe, headers, packets, tls, go, java, python, proxies, ruby, node]
  required_mode:
    description:
      - The least mode that the host must have. V(network) means O(groups) observe and headers,
        V(observe) only observe. V(write) means that go_write is possible too, wanted or not.
      - The module fails on a host below this mode and says found, required and remedy.
    type: str
    choices: [write, network, observe, none]
    default: none
  allow_sys_admin:
    description:
      - Whether the agent may have CAP_SYS_ADMIN where the kernel requires it for tls and go.
      - On hosts that can run go_write, go_write in O(groups) is consent, too.
    type: bool
    default: false
  installs:
    description: Whether the playbook goes on to install the agent. Then the module fails on a host
      whose package manager has installed it.
    type: bool
    default: false
  probe_process:
    description:
      - Whether a process of its own may open uprobes where the kernel requires CAP_SYS_ADMIN for
        them (V(auto)). The agent then has no such capability.
    type: str
    choices: [auto, never]
    default: auto
  doctor:
    description:
      - Whether to ask an installed agent (C(throughline doctor --json)), as its own user and with
        the capabilities of its unit.
    type: bool
    default: false
  ask:
    description: Whether the module ends where it wants the bundle. The action plugin sets it.
    type: bool
    default: false
  timeout:
    description: Seconds that the doctor has. It loads every program that is wanted.
    type: int
    default: 300
extends_documentation_fragment:
  - throughline.fleet.bundle
  - throughline.fleet.reads
  - throughline.fleet.root
"""

EXAMPLES = r"""
- name: Host has no known obstacle to the required mode
  throughline.fleet.throughline_preflight:
    groups: [observe, headers]
    required_mode: network

- name: Feature groups have been tried on the host
  throughline.fleet.throughline_preflight:
    groups: [observe, headers]
    doctor: true
    bundle: dist/

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
        untried: no bundle was given
        version: null
        mode: network
        unit_capabilities: [CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON]
        probe_process: false
        host: {kernel: 6.1.0-31-amd64, lockdown: integrity, cgroup_layout: unified}
        groups:
          observe: {state: "on", wanted: true, possible: true, reason: "", fix: ""}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.throughline.fleet.plugins.module_utils.doctor import (
    ask_doctor,
    merge,
    try_bundle,
)
from ansible_collections.throughline.fleet.plugins.module_utils.fetch import (
    BUNDLE_OPTIONS,
    FetchError,
    fetch,
)
from ansible_collections.throughline.fleet.plugins.module_utils.groups import (
    DEFAULT_GROUPS,
    GROUPS,
    MODES,
)
from ansible_collections.throughline.fleet.plugins.module_utils.host import (
    describe_host,
    installed_agent,
    read_kernel_options,
)
from ansible_collections.throughline.fleet.plugins.module_utils.package import (
    BASE,
    REST,
    refusal,
)
from ansible_collections.throughline.fleet.plugins.module_utils.uprobes import need
from ansible_collections.throughline.fleet.plugins.module_utils.verdict import (
    common_obstacles,
    judge_host,
    shortfall,
)

FACT = "throughline_preflight"
NO_BUNDLE = "no bundle was given (throughline_bundle)"


def main():
    """Entry point of the module; its action plugin calls it once, or again with the bundle."""
    module = AnsibleModule(
        argument_spec={
            "groups": {
                "type": "list",
                "elements": "str",
                "choices": list(GROUPS),
                "default": list(DEFAULT_GROUPS),
            },
            "required_mode": {"type": "str", "choices": list(MODES), "default": "none"},
            "allow_sys_admin": {"type": "bool", "default": False},
            "installs": {"type": "bool", "default": False},
            "probe_process": {"type": "str", "choices": ["auto", "never"], "default": "auto"},
            "doctor": {"type": "bool", "default": False},
            **BUNDLE_OPTIONS,
            "timeout": {"type": "int", "default": 300},
            "sha256": {"type": "str"},
            "src": {"type": "path"},
            "url": {"type": "str"},
            "fetch": {"type": "bool", "default": False},
            "ask": {"type": "bool", "default": False},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    root, wanted, timeout = (module.params[name] for name in ("root", "groups", "timeout"))
    packaged = [str(Path(root) / path.lstrip("/")) for path in (BASE, REST)]
    reason = refusal(*packaged) if module.params["installs"] else None
    if reason:
        module.fail_json(msg=reason)
    host = {**describe_host(root, module.run_command), "uprobes": need(root)}
    verdict = judge_host(
        host,
        read_kernel_options(root, host["kernel"]),
        wanted=wanted,
        allow_sys_admin=module.params["allow_sys_admin"],
        probe_process=module.params["probe_process"] == "auto",
    )
    verdict["agent"] = installed_agent(root)
    answer, problem, reason = None, None, NO_BUNDLE
    if module.params["doctor"]:
        answer, problem = ask_doctor(module.run_command, timeout)
    if answer:
        verdict.update(merge(verdict, answer), source="doctor")
    elif problem:
        verdict.update(doctor_error=problem, untried="the installed agent's doctor gave no answer")
    elif not common_obstacles(host):
        src, sha256 = module.params["src"], module.params["sha256"]
        if module.params["fetch"]:
            src = str(Path(module.tmpdir) / "bundle.tar.gz")
            try:
                fetch(module.params["url"], src, sha256=sha256)
            except (FetchError, OSError) as error:
                src, reason = None, str(error)
        if src:
            verdict.update(try_bundle(verdict, src, sha256=sha256, wanted=wanted, timeout=timeout))
        else:
            verdict["untried"] = reason
            if module.params["ask"]:  # the action plugin runs the module again, with a bundle
                module.exit_json(changed=False, missing=True, ansible_facts={FACT: verdict})
    message = shortfall(verdict, module.params["required_mode"])
    if message:
        module.fail_json(msg=message)
    module.exit_json(changed=False, ansible_facts={FACT: verdict})


if __name__ == "__main__":
    main()
