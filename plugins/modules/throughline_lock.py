#!/usr/bin/python
# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Locks a host for one run of ansible-playbook."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: throughline_lock
short_description: One run of a playbook works on a host at a time
version_added: "0.1.0"
author: throughline authors (@throughline)
description:
  - Takes the lock of the host, C(/run/throughline.lock), or frees it. While another run has it, the
    module fails, and says which run.
  - The same run may take it again. Freeing a lock that another run has changes nothing.
  - A lock ends with the boot of the host, after O(minutes), or once the process of its run is gone,
    where that was a process of this controller.
  - A lock is no change of the host.
  - Fails on a host on which the agent is a package of its package manager.
options:
  state:
    description: Whether this run has the lock.
    type: str
    choices: [taken, free]
    default: taken
  minutes:
    description: Minutes after which another run may take the lock of a run that was killed.
    type: int
    default: 60
  claim:
    description: This run. The action plugin says it.
    type: dict
  instead_of:
    description: Name of a run that has ended. The action plugin says it.
    type: str
attributes:
  check_mode:
    description: Warns where another run has the lock, takes none and frees none.
    support: full
  diff_mode:
    description: There is no text to compare.
    support: none
"""

EXAMPLES = r"""
- name: One run at a time works on the host
  block:
    - name: Host is locked for this run
      throughline.fleet.throughline_lock:

    - name: Agent is installed
      ansible.builtin.import_role:
        name: throughline.fleet.agent
  always:
    - name: Host is free for other runs
      throughline.fleet.throughline_lock:
        state: free
"""

RETURN = r"""
path:
  description: The lock.
  returned: on success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.throughline.fleet.plugins.module_utils.lock import (
    LOCK,
    describe,
    free,
    other_run,
    take,
)
from ansible_collections.throughline.fleet.plugins.module_utils.package import refusal


def main():
    """Entry point of the module; its action plugin calls it."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["taken", "free"], "default": "taken"},
            "minutes": {"type": "int", "default": 60},
            "claim": {"type": "dict"},
            "instead_of": {"type": "str"},
        },
        supports_check_mode=True,
    )
    claim, is_wanted = module.params["claim"], module.params["state"] == "taken"
    reason = refusal() if is_wanted else None
    if reason:
        module.fail_json(msg=reason)
    if module.check_mode:
        other = other_run(claim["run"]) if is_wanted else None
        if other:
            module.warn(f"{describe(other)} What check mode says may be over soon.")
    elif is_wanted:
        other = take(
            claim,
            seconds=60 * module.params["minutes"],
            instead_of=module.params["instead_of"],
        )
        if other:
            module.fail_json(msg=describe(other), other=other)
    else:
        free(claim["run"])
    module.exit_json(changed=False, path=LOCK)


if __name__ == "__main__":
    main()
