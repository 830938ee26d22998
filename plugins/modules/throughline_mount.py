#!/usr/bin/python
# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Mounts a kernel file system, now and at boot; an existing mount stays as it is."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: throughline_mount
short_description: A kernel file system is mounted, by a systemd unit of throughline
version_added: "0.1.0"
author: throughline authors (@throughline)
description:
  - Writes a systemd C(.mount) unit, enables it and starts it. Below C(/sys), systemd refuses mount
    units. There the unit is a service that runs mount(8).
  - A file system of this type that is mounted already stays as it is, whoever mounted it, and gets
    no unit. Nothing is ever mounted over or remounted.
  - O(state=absent) stops and removes the unit of throughline, and unmounts its file system. Other
    mounts stay. Mounts at C(/run/throughline) and C(/run/throughline-bpf) belong to throughline.
options:
  path:
    description: Mount point.
    type: path
    required: true
  fstype:
    description: Type of the file system.
    type: str
    choices: [bpf, cgroup2, securityfs]
    required: true
  options:
    description: Mount options.
    type: str
    default: nosuid,nodev,noexec
  anywhere:
    description: Whether an existing mount of this type at another path is enough.
    type: bool
    default: false
  state:
    description: Whether the file system is mounted.
    type: str
    choices: [mounted, absent]
    default: mounted
extends_documentation_fragment: [throughline.fleet.root]
attributes:
  check_mode:
    description: Says what it would do, and changes nothing.
    support: full
  diff_mode:
    description: Shows the unit.
    support: full
"""

EXAMPLES = r"""
- name: BPF file system of throughline is mounted
  throughline.fleet.throughline_mount:
    path: /run/throughline-bpf
    fstype: bpf
    options: nosuid,nodev,noexec,mode=0700
"""

RETURN = r"""
unit:
  description: Name of the unit.
  returned: always
  type: str
  sample: run-throughline\x2dbpf.mount
mounted_by:
  description: C(throughline) for the unit of throughline, C(other) for an existing mount.
  returned: when state is mounted
  type: str
"""

import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.throughline.fleet.plugins.module_utils.files import read_file, write_file
from ansible_collections.throughline.fleet.plugins.module_utils.host import read_mounts

MOUNT = """\
# Written by throughline_mount (throughline.fleet); removed by uninstall.yml.
[Unit]
Description={description}
DefaultDependencies=no
Conflicts=umount.target
Before=local-fs.target umount.target
After=systemd-remount-fs.service

[Mount]
What={fstype}
Where={path}
Type={fstype}
Options={options}

[Install]
WantedBy=local-fs.target
"""
SERVICE = """\
# Written by throughline_mount (throughline.fleet); removed by uninstall.yml.
[Unit]
Description={description}
DefaultDependencies=no
ConditionPathIsMountPoint=!{path}
Conflicts=umount.target
Before=local-fs.target umount.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStartPre=/bin/mkdir -p {path}
ExecStart=/bin/mount -t {fstype} -o {options} {fstype} {path}
ExecStop=-/bin/umount {path}

[Install]
WantedBy=local-fs.target
"""


def unit_name(path, fstype):
    r"""The name of the unit for a mount point: run-a\x2db.mount for /run/a-b (systemd.unit(5))."""
    if path.startswith("/sys/"):  # systemd: "Cannot create mount unit for API file system"
        return f"throughline-{fstype}.service"
    trimmed = path.strip("/")
    escaped = re.sub(
        r"[^A-Za-z0-9:_./]",
        lambda match: "".join(f"\\x{byte:02x}" for byte in match.group().encode()),
        trimmed,
    )
    if escaped.startswith("."):
        escaped = r"\x2e" + escaped[1:]
    return escaped.replace("/", "-") + ".mount"


def unit_text(path, fstype, options):
    """The text of the unit."""
    description = {
        "bpf": "Pinned BPF objects of throughline",
        "cgroup2": "Unified cgroup hierarchy for throughline",
        "securityfs": "Kernel security file system for throughline",
    }[fstype]
    template = SERVICE if path.startswith("/sys/") else MOUNT
    return template.format(description=description, path=path, fstype=fstype, options=options)


def mounted(module, path, fstype, file, text):
    """Mounts the file system where it is not mounted. Returns (changed, diff, mounted_by)."""
    mounts = read_mounts(module.params["root"])
    ours = file.is_file()
    same_type = [point for point, kind in mounts if kind == fstype]
    is_mounted = path in same_type
    if not ours and (is_mounted or (module.params["anywhere"] and same_type)):
        return False, None, "other"
    taken = next((kind for point, kind in mounts if point == path), None)
    if taken not in (None, fstype):
        module.fail_json(
            msg=f"Found {taken} mounted at {path}, required {fstype}."
            " It is not of throughline and stays as it is. Remedy: unmount it, then run again."
        )
    before = (read_file(file) or "") if ours else ""
    enabled = (file.parent / "local-fs.target.wants" / file.name).is_symlink()
    changed = before != text or not is_mounted or not enabled
    if changed and not module.check_mode:
        if before != text:
            write_file(file, text)
            systemctl(module, "daemon-reload")
        systemctl(module, "enable", "--quiet", file.name)
        if not is_mounted:
            # Not `start`: a service is still active where its file system was unmounted by hand.
            systemctl(module, "restart", file.name)
            if path not in [point for point, _kind in read_mounts(module.params["root"])]:
                module.fail_json(
                    msg=f"Found nothing mounted at {path} although {file.name} was started, "
                    f"required {fstype}. Remedy: journalctl -u {file.name}"
                )
    return changed, {"before": before, "after": text, "after_header": str(file)}, "throughline"


def absent(module, path, file):
    """Stops and removes the unit, and unmounts the file system. Returns (changed, diff)."""
    before = (read_file(file) or "") if file.is_file() else ""
    if before and not module.check_mode:
        systemctl(module, "disable", "--quiet", "--now", file.name)
        file.unlink()
        systemctl(module, "daemon-reload")
    is_own_path = path.startswith("/run/throughline")
    left = [point for point, _fstype in read_mounts(module.params["root"]) if point == path]
    if is_own_path and not module.check_mode:
        for point in left:
            run(module, "umount", point)
    changed = bool(before) or (is_own_path and bool(left))
    return changed, {"before": before, "after": "", "before_header": str(file)}


def run(module, *command):
    """Runs a program, and fails with its message where it fails."""
    code, out, err = module.run_command(list(command))
    if code:
        module.fail_json(msg=f"{' '.join(command)}: {(err or out).strip()}", rc=code)


def systemctl(module, *arguments):
    """Runs systemctl."""
    run(module, "systemctl", *arguments)


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "fstype": {
                "type": "str",
                "choices": ["bpf", "cgroup2", "securityfs"],
                "required": True,
            },
            "options": {"type": "str", "default": "nosuid,nodev,noexec"},
            "anywhere": {"type": "bool", "default": False},
            "state": {"type": "str", "choices": ["mounted", "absent"], "default": "mounted"},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    path, fstype = module.params["path"], module.params["fstype"]
    file = Path(module.params["root"]) / "etc/systemd/system" / unit_name(path, fstype)
    result = {"unit": file.name}
    if module.params["state"] == "absent":
        changed, diff = absent(module, path, file)
    else:
        text = unit_text(path, fstype, module.params["options"])
        changed, diff, result["mounted_by"] = mounted(module, path, fstype, file, text)
    if diff:
        result["diff"] = diff
    module.exit_json(changed=changed, **result)


if __name__ == "__main__":
    main()
