#!/usr/bin/python
# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Finds what is left of throughline on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: throughline_residue
short_description: Finds what is left of throughline on a host
version_added: "0.1.0"
author: throughline authors (@throughline)
description:
  - Looks for units, drop-ins, files, mounts, cgroup, processes, user, group and pins of
    throughline. Looks for its BPF programs where C(bpftool) is installed. Changes nothing.
options:
  programs:
    description:
      - Ids of the BPF programs that the agent had attached. They must not be loaded any more.
      - Programs whose name starts with C(tl_) must not be loaded either. In a container only the
        ids count, because it shares its kernel with others.
    type: list
    elements: int
    default: []
  settle:
    description: Seconds to wait for the kernel to free what was detached.
    type: int
    default: 5
  expect_none:
    description: Whether the module fails where anything is left.
    type: bool
    default: true
extends_documentation_fragment: [throughline.fleet.reads]
"""

EXAMPLES = r"""
- name: Nothing of throughline is left
  throughline.fleet.throughline_residue:
    programs: [117, 118]
"""

RETURN = r"""
paths:
  description: The files and directories that throughline makes.
  returned: always
  type: list
  elements: str
left:
  description: What is left. Each entry names its kind and its place.
  returned: always
  type: list
  elements: str
checked:
  description: What the module looked for, and what it could not look for.
  returned: always
  type: list
  elements: str
"""

import grp
import json
import pwd
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.throughline.fleet.plugins.module_utils.host import read_mounts

PATHS = (
    "/etc/throughline",
    "/etc/systemd/system/throughline-probes.service",
    "/etc/systemd/system/throughline-probes.socket",
    "/etc/systemd/system/throughline.service",
    "/etc/systemd/system/throughline.service.d",
    "/opt/throughline",
    "/run/throughline",
    "/run/throughline-bpf",
    "/run/throughline-probes.socket",
    "/var/lib/throughline",
)
PATTERNS = (
    "etc/systemd/system/*.service.d/throughline-node.conf",
    "etc/systemd/system/throughline*",
    r"etc/systemd/system/run-throughline\x2dbpf.mount",
    "etc/systemd/system/*.wants/throughline*",
    r"etc/systemd/system/*.wants/run-throughline\x2dbpf.mount",
)
NAME = "throughline"
PRELOADED = ("maps.debug", "progs.debug")  # the kernel makes them in each bpffs
PROGRAM_PREFIX = "tl_"
POLL_SECONDS = 0.25


def left_files():
    """Files and directories."""
    found = {path for path in PATHS if Path(path).exists() or Path(path).is_symlink()}
    for pattern in PATTERNS:
        found.update(str(path) for path in Path("/").glob(pattern))
    return [f"file {path}" for path in sorted(found)]


def left_pins():
    """Pinned programs, links and maps."""
    paths = sorted(Path("/run/throughline-bpf").glob("*"))
    return [f"pin {path}" for path in paths if path.name not in PRELOADED]


def left_cgroups():
    """The slice of the unit. systemd keeps it when it is empty."""
    roots = [point for point, kind in read_mounts("/") if kind == "cgroup2"]
    paths = [Path(root) / "throughline.slice" for root in roots]
    return [f"cgroup {path}" for path in paths if path.is_dir()]


def left_mounts():
    """Mounts at paths of throughline."""
    return [f"mount of {kind} at {point}" for point, kind in read_mounts("/") if point in PATHS]


def left_accounts():
    """User and group."""
    left = []
    for kind, lookup in (("user", pwd.getpwnam), ("group", grp.getgrnam)):
        try:
            lookup(NAME)
        except KeyError:
            continue
        left.append(f"{kind} {NAME}")
    return left


def left_processes():
    """Processes that run a program of a release."""
    left = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # the process has ended
            continue
        if any(word.startswith(b"/opt/throughline/") for word in words[:8]):
            left.append(f"process {path.parent.name}")
    return left


def left_programs(module, bpftool, *, shared_kernel):
    """BPF programs of throughline that are loaded."""
    code, out, err = module.run_command([bpftool, "--json", "prog", "show"])
    if code:
        module.fail_json(msg=f"bpftool prog show: {(err or out).strip()}")
    wanted = set(module.params["programs"])
    return [
        f"BPF program {program['id']} ({program.get('name', '')})"
        for program in json.loads(out)
        if program["id"] in wanted
        or (not shared_kernel and program.get("name", "").startswith(PROGRAM_PREFIX))
    ]


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "programs": {"type": "list", "elements": "int", "default": []},
            "settle": {"type": "int", "default": 5},
            "expect_none": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    code, _out, _err = module.run_command(["systemd-detect-virt", "--container", "--quiet"])
    shared_kernel = code == 0
    bpftool = module.get_bin_path("bpftool", opt_dirs=["/usr/sbin", "/sbin"])
    deadline = time.monotonic() + module.params["settle"]
    while True:
        left = left_pins() + left_files() + left_mounts() + left_cgroups()
        left += left_accounts() + left_processes()
        if bpftool:
            left += left_programs(module, bpftool, shared_kernel=shared_kernel)
        if not left or not module.params["expect_none"] or time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    checked = ["files", "pins", "mounts", "cgroup", "units", "user and group", "processes"]
    if not bpftool:
        checked.append("not BPF programs: bpftool is not installed")
    elif shared_kernel:
        checked.append("BPF programs by id: the kernel is shared with other hosts")
    else:
        checked.append("BPF programs")
    result = {"paths": list(PATHS), "left": left, "checked": checked}
    if left and module.params["expect_none"]:
        module.fail_json(
            msg=f"Found left over: {'; '.join(left)}. Required: nothing. Remedy: find the process"
            " that uses it (fuser, lsof), end it, and run uninstall.yml again.",
            **result,
        )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
