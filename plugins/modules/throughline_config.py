#!/usr/bin/python
# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The agent's configuration is one that its release accepts, and no output shows a credential."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: throughline_config
short_description: The agent's configuration is in place, and its release accepts it
version_added: "0.1.0"
author: throughline authors (@throughline)
description:
  - Lets O(release) check the text before it replaces the configuration. What it refuses changes
    nothing.
  - Directory and file can be read by root and the agent's group only.
  - Neither the diff nor a message shows the value of a header, or another credential, of the text
    or of what is there, whoever wrote that.
  - While the configuration that was healthy last is being replaced, it is kept for
    M(throughline.fleet.throughline_service), which removes it once the new one is healthy.
options:
  content:
    description: Text of the configuration.
    type: str
    required: true
  release:
    description: Name of the release below C(releases/) that has to accept it.
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
  base:
    description: Directory that holds the releases.
    type: path
    default: /opt/throughline
attributes:
  check_mode:
    description: Says whether the file would change; what is not unpacked yet cannot check it.
    support: full
  diff_mode:
    description: Shows the file without credentials, and says which of them change.
    support: full
"""

EXAMPLES = r"""
- name: Configuration is one that the release accepts
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
from ansible_collections.throughline.fleet.plugins.module_utils.printable import printable
from ansible_collections.throughline.fleet.plugins.module_utils.release import name_release
from ansible_collections.throughline.fleet.plugins.module_utils.served import (
    keep_replaced,
    read_file,
    read_served,
)
from ansible_collections.throughline.fleet.plugins.module_utils.unit import ask

DIRECTORY_MODE = 0o750
FILE_MODE = 0o640


def group_id(name):
    """The group's number, or None where there is none yet."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def is_settled(path, *, gid, mode):
    """Do owner, group and mode of a path fit?"""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (0, gid, mode)


def make_directory(path, *, gid):
    """The directory of the configuration."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chown(path, 0, gid)
    path.chmod(DIRECTORY_MODE)


def write_draft(path, content, *, gid):
    """The text beside the file, as the file is to be."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    if draft.exists():  # of a run that was killed, in a directory that only root may write to
        draft.unlink()
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        os.fchown(descriptor, 0, gid)
        os.fchmod(descriptor, FILE_MODE)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    return draft


def put_in_place(module, path, content, *, gid):
    """Writes the file once the release has accepted the text; fails where it does not."""
    base, release = Path(module.params["base"]), module.params["release"]
    draft = write_draft(path, content, gid=gid)
    try:
        code, out, err = ask(
            module.run_command, base / "releases" / release, "config", "check", str(draft)
        )
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
            msg=f"Found no group {module.params['group']}, required the agent's."
            " Remedy: run the role `agent`, which makes it."
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
