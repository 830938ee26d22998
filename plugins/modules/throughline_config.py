#!/usr/bin/python
# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Writes the agent's configuration once its release accepts it; no output shows a credential."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: throughline_config
short_description: The agent's configuration is in place, and its release accepts it
version_added: "0.1.0"
author: throughline authors (@throughline)
description:
  - Lets O(release) check the text before it replaces the configuration. A text that the release
    refuses changes nothing. The check runs as the agent's user, so it also finds a certificate that
    only root can read.
  - Only root and the agent's group can read the directory and the file.
  - Neither the diff nor a message shows the value of a header or another credential, of the new
    text or of the present file, whoever wrote that.
  - Keeps the replaced configuration for M(throughline.fleet.throughline_service), which removes it
    once the new one is healthy.
options:
  content:
    description: Text of the configuration.
    type: str
    required: true
  release:
    description: Name of the release below C(releases/) that has to accept the text.
    type: str
    required: true
  path:
    description: Configuration file of the agent.
    type: path
    default: /etc/throughline/config.yaml
  group:
    description: Group of the agent.
    type: str
    default: throughline
extends_documentation_fragment: [throughline.fleet.releases]
attributes:
  check_mode:
    description: Says whether the file would change. No release checks the text.
    support: full
  diff_mode:
    description: Shows the file without credentials, and marks those that change.
    support: full
"""

EXAMPLES = r"""
- name: Configuration is in place and the release accepts it
  throughline.fleet.throughline_config:
    content: "{{ lookup('ansible.builtin.template', 'config.yaml.j2') }}"
    release: "{{ __throughline_release.release }}"
  register: __throughline_configuration
"""

RETURN = r"""
path:
  description: The configuration file.
  returned: always
  type: str
"""

import grp
import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.throughline.fleet.plugins.module_utils.credentials import hide, scrub
from ansible_collections.throughline.fleet.plugins.module_utils.files import (
    read_file,
    write_draft,
)
from ansible_collections.throughline.fleet.plugins.module_utils.printable import printable
from ansible_collections.throughline.fleet.plugins.module_utils.release import name_release
from ansible_collections.throughline.fleet.plugins.module_utils.served import (
    keep_replaced,
    read_served,
)
from ansible_collections.throughline.fleet.plugins.module_utils.unit import check_config

DIRECTORY_MODE = 0o750
FILE_MODE = 0o640


def group_id(name):
    """The id of a group, or None where there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def is_settled(path, *, gid, mode):
    """Returns whether owner, group and mode of a path are as they should be."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (0, gid, mode)


def make_directory(path, *, gid):
    """Makes the directory of the configuration, with its group and mode."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chown(path, 0, gid)
    path.chmod(DIRECTORY_MODE)


def put_in_place(module, path, content, *, gid):
    """Replaces the file once the release has accepted the text; fails where it refuses it."""
    base, release = Path(module.params["base"]), module.params["release"]
    draft = write_draft(path, content, uid=0, gid=gid, mode=FILE_MODE)
    try:
        code, out, err = check_config(module.run_command, base / "releases" / release, draft)
        if code:
            said = scrub((err or out).strip(), content) or f"exit code {code}"
            said = printable(said.replace(str(draft), str(path)), keep="\n")
            module.fail_json(
                msg=f"Found a configuration that {name_release(base, release)} refuses, required"
                f" one that it accepts. {path} was not touched.\n{said}\n"
                "Remedy: change throughline_config."
            )
        keep_replaced(base, read_served(base))
        draft.rename(path)
    finally:
        if draft.exists():
            draft.unlink()


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "content": {"type": "str", "required": True, "no_log": True},
            "release": {"type": "str", "required": True},
            "path": {"type": "path", "default": "/etc/throughline/config.yaml"},
            "group": {"type": "str", "default": "throughline"},
            "base": {"type": "path", "default": "/opt/throughline"},
        },
        supports_check_mode=True,
    )
    path, gid = Path(module.params["path"]), group_id(module.params["group"])
    content = module.params["content"].rstrip("\n") + "\n"
    present = read_file(path)
    directory_fits = is_settled(path.parent, gid=gid, mode=DIRECTORY_MODE)
    file_fits = is_settled(path, gid=gid, mode=FILE_MODE)
    result = {
        "changed": present != content or not directory_fits or not file_fits,
        "path": str(path),
        "diff": {
            "before": hide(present or ""),
            "after": hide(content, before=present),
            "before_header": str(path),
            "after_header": str(path),
        },
    }
    if module.check_mode or not result["changed"]:
        module.exit_json(**result)
    if gid is None:
        module.fail_json(
            msg=f"Found no group {module.params['group']}, required the agent's group."
            " Remedy: run the role `agent`, which creates it."
        )
    if not directory_fits:
        make_directory(path.parent, gid=gid)
    if present != content:
        put_in_place(module, path, content, gid=gid)
    elif not file_fits:
        os.chown(path, 0, gid, follow_symlinks=False)
        path.chmod(FILE_MODE)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
