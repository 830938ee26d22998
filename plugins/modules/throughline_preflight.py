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
short_description: Says what keeps throughline's feature groups from working on a host, if anything
version_added: "0.1.0"
author: throughline authors (@throughline)
description:
  - Reads the kernel version, BTF, lockdown mode, cgroup layout, mounts, Python and systemd, and
    gives a verdict for each feature group. Nothing on the host is changed.
  - A group in which it finds no obstacle may still be refused by the kernel. Whether it works is
    tried with O(bundle), and known where an agent answers (O(doctor)).
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
    description:
      - Ask the installed agent (C(throughline doctor --json)) where there is one, as its own user
        and with the capabilities of its unit.
    type: bool
    default: false
  bundle:
    description:
      - Bundle on the controller, or a directory, of which the newest bundle is taken. Where no
        agent is installed, its release is copied to the host, and its C(throughline doctor --json)
        runs there without root, with the capabilities that the agent would have.
      - Release, BPF file system and programs are in a mount namespace of their own, which ends with
        the doctor. Nothing of it stays.
      - Without a bundle nothing is tried, and the result says so in C(untried).
    type: path
  timeout:
    description: Seconds that the doctor has, which loads every program that is wanted.
    type: int
    default: 300
  sha256:
    description: SHA-256 of the bundle. Set by the action plugin.
    type: str
  src:
    description: Copy of the bundle on the host. Set by the action plugin.
    type: path
  root:
    description: Directory that stands for C(/); for tests with a recorded tree.
    type: path
    default: /
extends_documentation_fragment: [throughline.fleet.reads]
"""

EXAMPLES = r"""
- name: Nothing is known that keeps the host from the required mode
  throughline.fleet.throughline_preflight:
    groups: [observe, headers]
    required_mode: network

- name: What works on the host has been tried
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
        host: {kernel: 6.1.0-31-amd64, lockdown: integrity, cgroup_layout: unified}
        groups:
          observe: {state: "on", wanted: true, possible: true, reason: "", fix: ""}
"""

import os
import pwd

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.throughline.fleet.plugins.module_utils.host import (
    CAPABILITY_BITS,
    UNIT,
    describe_host,
    installed_agent,
    read_kernel_options,
)
from ansible_collections.throughline.fleet.plugins.module_utils.trial import (
    ask_as_service,
    try_release,
)
from ansible_collections.throughline.fleet.plugins.module_utils.uprobes import need
from ansible_collections.throughline.fleet.plugins.module_utils.verdict import (
    GROUPS,
    MODES,
    common_obstacles,
    granted_capabilities,
    judge,
    mode_of,
    shortfall,
)

FACT = "throughline_preflight"
NO_BUNDLE = "no bundle was given (throughline_bundle)"


def ask_doctor(run, timeout):
    """(doctor --json of the installed agent or None, why not); (None, None) without an agent.

    It runs as the agent does, so that one which is stopped is not tried with more than it has.
    """
    launcher = "/opt/throughline/current/bin/throughline"
    config = "/etc/throughline/config.yaml"
    if not os.access(launcher, os.X_OK):
        return None, None
    account, capabilities = service_account(run)
    answer, problem = ask_as_service(
        launcher,
        config,
        capabilities=capabilities,
        timeout=timeout,
        uid=account.pw_uid if account else os.geteuid(),
        gid=account.pw_gid if account else os.getegid(),
    )
    if problem is None and not is_answer(answer):
        return None, "its answer has another shape"
    return answer, problem


def service_account(run):
    """(account, capabilities) of the agent's unit; where it has none, (None, what we have)."""
    _code, out, _err = run(["systemctl", "show", UNIT, "--property=AmbientCapabilities"])
    names = out.strip().partition("=")[2].upper().split()
    try:
        account = pwd.getpwnam("throughline")
    except KeyError:
        account = None
    if account is None or os.geteuid() != 0 or not set(names) & set(CAPABILITY_BITS):
        return None, None
    return account, [name for name in names if name in CAPABILITY_BITS]


def is_answer(answer):
    """Is this what `doctor --json` of some release prints?"""
    return (
        isinstance(answer, dict)
        and {"version", "host", "groups", "mode"} <= answer.keys()
        and isinstance(answer["host"], dict)
        and isinstance(answer["groups"], dict)
        and all(
            isinstance(group, dict) and {"state", "wanted", "reason", "fix"} <= group.keys()
            for group in answer["groups"].values()
        )
    )


def merge(verdict, answer):
    """The doctor's answer, and what only preflight looks at: could the host do a group?"""
    host = {**verdict["host"], **answer["host"]}
    return {**answer, "host": host, "groups": merge_groups(verdict, answer)}


def merge_groups(verdict, answer):
    """Each group as the doctor found it, and what keeps the host from those it did not try.

    It does not try a group that is switched off, or that the installed release does not have.
    """
    groups = {}
    for name, group in answer["groups"].items():
        ours = verdict["groups"].get(name, {})
        groups[name] = {**ours, **group}
        if ours and ours["reason"] and not group["wanted"] and not group["fix"]:
            both = f"{group['reason']}; {ours['reason']}" if group["reason"] else ours["reason"]
            groups[name].update(reason=both, fix=ours["fix"])
    return groups


def merge_trial(verdict, answer, *, wanted):
    """What a trial has shown. Of the host our own facts count: the trial saw its own mounts."""
    groups = merge_groups(verdict, answer)
    for name, group in groups.items():
        if name in wanted:
            group["possible"] = group["state"] == "on"
    return {
        "source": "trial",
        "tried_version": answer["version"],
        "groups": groups,
        "mode": mode_of(groups),
    }


def attempt(verdict, parameters):
    """Tries the release that the action plugin has brought: what becomes of the verdict."""
    wanted = parameters["groups"]
    answer, problem = try_release(
        parameters["src"],
        sha256=parameters["sha256"],
        capabilities=granted_capabilities(
            verdict["host"], verdict["groups"], allow_sys_admin=parameters["allow_sys_admin"]
        ),
        wanted=wanted,
        timeout=parameters["timeout"],
    )
    if problem is None and not is_answer(answer):
        problem = "throughline doctor printed something else than its report"
    if problem is not None:
        return {"untried": f"the trial failed: {problem}"}
    return merge_trial(verdict, answer, wanted=wanted)


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
            "bundle": {"type": "path"},
            "timeout": {"type": "int", "default": 300},
            "sha256": {"type": "str"},
            "src": {"type": "path"},
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
    answer, problem = None, None
    if module.params["doctor"]:
        answer, problem = ask_doctor(module.run_command, module.params["timeout"])
    if answer:
        verdict.update(merge(verdict, answer), source="doctor")
    elif problem:
        verdict.update(doctor_error=problem, untried="the installed agent's doctor gave no answer")
    elif not common_obstacles(host):
        verdict["untried"] = NO_BUNDLE
        if module.params["src"]:
            del verdict["untried"]
            verdict.update(attempt(verdict, module.params))
        elif module.params["sha256"]:  # the action plugin brings the bundle and asks again
            module.exit_json(changed=False, missing=True, ansible_facts={FACT: verdict})
    message = shortfall(verdict, module.params["required_mode"])
    if message:
        module.fail_json(msg=message)
    module.exit_json(changed=False, ansible_facts={FACT: verdict})


if __name__ == "__main__":
    main()
