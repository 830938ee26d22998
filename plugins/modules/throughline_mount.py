#!/usr/bin/python
# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""A kernel file system is mounted, and will be after a reboot; what is mounted already stays."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: throughline_mount
short_description: A kernel file system is mounted, by a systemd unit of ours
version_added: "0.1.0"
author: throughline authors (@throughline)
description:
  - Writes a systemd C(.mount) unit, enables it and starts it. Below C(/sys), where systemd refuses
    mount units, it is a service that runs mount(8).
  - A file system of that type that is mounted already, by whomever, is left exactly as it is, and
    no unit is written for it. Nothing is ever mounted over or remounted.
  - With O(state=absent), stops and removes our unit, and what it mounted. A mount that is not
    ours stays. What is mounted below C(/run/throughline) or C(/run/throughline-bpf) is ours.
options:
  path:
    description: Where to mount.
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
    description: A mount of this type at any other path will do as well.
    type: bool
    default: false
  state:
    description: Whether it shall be mounted.
    type: str
    choices: [mounted, absent]
    default: mounted
  root:
    description: Directory that stands for C(/) when files are read and written; for tests.
    type: path
    default: /
attributes:
  check_mode:
    description: Says what it would do and changes nothing.
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
  description: C(throughline) for a unit of ours, C(other) for a mount that was there already.
  returned: when state is mounted
  type: str
"""

import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.throughline.fleet.plugins.module_utils.host import read_mounts
from ansible_collections.throughline.fleet.plugins.module_utils.served import read_file

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
    r"""The unit of a mount point: /run/a-b gives run-a\x2db.mount (systemd.unit(5))."""
    if path.startswith("/sys/"):  # "Cannot create mount unit for API file system"
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
    """The unit file."""
    description = {
        "bpf": "Pinned BPF objects of throughline",
        "cgroup2": "Unified cgroup hierarchy for throughline",
        "securityfs": "Kernel security file system for throughline",
    }[fstype]
    template = SERVICE if path.startswith("/sys/") else MOUNT
    return template.format(description=description, path=path, fstype=fstype, options=options)


def mounted(module, path, fstype, file, text):
    """What to do so that it is mounted: (changed, diff, who mounts it)."""
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
            " It is not ours and stays as it is. Remedy: unmount it, then run again."
        )
    before = (read_file(file) or "") if ours else ""
    enabled = (file.parent / "local-fs.target.wants" / file.name).is_symlink()
    changed = before != text or not is_mounted or not enabled
    if changed and not module.check_mode:
        if before != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            systemctl(module, "daemon-reload")
        systemctl(module, "enable", "--quiet", file.name)
        if not is_mounted:
            # somebody may have unmounted what a service had mounted: it counts as active still
            systemctl(module, "restart", file.name)
            if path not in [point for point, _kind in read_mounts(module.params["root"])]:
                module.fail_json(
                    msg=f"Found nothing mounted at {path} although {file.name} was started, "
                    f"required {fstype}. Remedy: journalctl -u {file.name}"
                )
    return changed, {"before": before, "after": text, "after_header": str(file)}, "throughline"


def absent(module, path, file):
    """Stop and remove our unit, and unmount what is ours by its place: (changed, diff)."""
    before = (read_file(file) or "") if file.is_file() else ""
    if before and not module.check_mode:
        systemctl(module, "disable", "--quiet", "--now", file.name)
        file.unlink()
        systemctl(module, "daemon-reload")
    at_our_place = path.startswith("/run/throughline")
    left = [point for point, _fstype in read_mounts(module.params["root"]) if point == path]
    if at_our_place and not module.check_mode:
        for point in left:
            run(module, "umount", point)
    changed = bool(before) or (at_our_place and bool(left))
    return changed, {"before": before, "after": "", "before_header": str(file)}


def run(module, *command):
    """Run a program; its own message is the module's when it fails."""
    code, out, err = module.run_command(list(command))
    if code:
        module.fail_json(msg=f"{' '.join(command)}: {(err or out).strip()}", rc=code)


def systemctl(module, *arguments):
    """Run systemctl."""
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
