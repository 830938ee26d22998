# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The facts about a host: kernel, mounts, lockdown, systemd. Reading changes nothing.

`root` stands for / in tests with a recorded tree; `run` is AnsibleModule.run_command.
"""

from __future__ import annotations

import ctypes
import errno
import gzip
import json
import os
import re
from pathlib import Path

BPFFS = "/run/throughline-bpf"
UNIT = "throughline.service"
CAPABILITY_BITS = {  # linux/capability.h
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_LEASE": 28,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
# These system calls have the same numbers on all architectures but alpha, since Linux 5.2.
SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT, FSCONFIG_CMD_CREATE = 430, 431, 432, 6


def read_text(root, path):
    """The file's text, or None where it cannot be read."""
    try:
        return (Path(root) / path.lstrip("/")).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def read_mounts(root):
    """[(mount point, file system type)] from /proc/self/mountinfo (proc_pid_mountinfo(5))."""
    mounts = []
    for line in (read_text(root, "/proc/self/mountinfo") or "").splitlines():
        left, separator, right = line.partition(" - ")
        if separator and len(left.split()) >= 5 and right.split():
            point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), left.split()[4])
            mounts.append((point, right.split()[0]))
    return mounts


def find_mount(mounts, fstype):
    """The first mount point of a file system type, or None."""
    return next((point for point, kind in mounts if kind == fstype), None)


def cgroup_layout(mounts):
    """(layout, mount point of cgroup2 or None). The layouts have systemd's names, or "none"."""
    cgroup2 = find_mount(mounts, "cgroup2")
    has_v1 = find_mount(mounts, "cgroup") is not None
    if cgroup2:
        return ("hybrid" if has_v1 else "unified"), cgroup2
    return ("legacy" if has_v1 else "none"), None


def read_detached_lockdown():
    """The lockdown file, through a detached mount (fsmount(2), Linux 5.2), or None.

    Containers often have no securityfs. A detached mount has no mount point and ends here.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    opened = []

    def call(number, *arguments):
        result = libc.syscall(number, *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), "securityfs")
        return result

    try:
        opened.append(call(SYS_FSOPEN, b"securityfs", 1))
        call(SYS_FSCONFIG, opened[0], FSCONFIG_CMD_CREATE, None, None, 0)
        opened.append(call(SYS_FSMOUNT, opened[0], 1, 0))
        opened.append(os.open("lockdown", os.O_RDONLY | os.O_CLOEXEC, dir_fd=opened[1]))
        return os.read(opened[2], 256).decode()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EPERM, errno.EACCES, errno.ENOSYS):
            return None
        raise
    finally:
        for descriptor in reversed(opened):
            os.close(descriptor)


def read_lockdown(root):
    """none, integrity or confidentiality; absent where the kernel has no lockdown or hides it."""
    text = read_text(root, "/sys/kernel/security/lockdown")
    if text is None and root == "/":
        text = read_detached_lockdown()
    match = re.search(r"\[(\w+)\]", text or "")
    return match.group(1) if match else "absent"


def read_kernel_options(root, release):
    """{option: value} of the kernel's build, or {} where its config is not on the host."""
    try:
        with gzip.open(Path(root) / "proc/config.gz", "rt") as file:
            text = file.read()
    except OSError:
        text = read_text(root, f"/boot/config-{release}")
        text = text or read_text(root, f"/usr/lib/modules/{release}/config") or ""
    return dict(re.findall(r"^(CONFIG_\w+)=(\S+)", text, re.MULTILINE))


def read_bounding_capabilities(root):
    """The names in CAPABILITY_BITS that PID 1 can hand to a unit."""
    status = read_text(root, "/proc/1/status") or ""
    match = re.search(r"^CapBnd:\s*([0-9a-f]+)", status, re.MULTILINE)
    mask = int(match.group(1), 16) if match else 0
    return sorted(name for name, bit in CAPABILITY_BITS.items() if mask >> bit & 1)


def version_tuple(text):
    """The leading numbers of a version: (6, 1, 0) for '6.1.0-31-amd64'."""
    match = re.match(r"\d+(?:\.\d+)*", text or "")
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def systemd_version(root, run):
    """systemd's major version where it is PID 1, else None."""
    if not (Path(root) / "run/systemd/system").is_dir():
        return None
    _code, out, _err = run(["systemctl", "--version"])
    match = re.search(r"systemd (\d+)", out or "")
    return int(match.group(1)) if match else None


def has_attach_cookies(root):
    """Whether the kernel's type information names the function that tells programs their cookie.

    Linux 5.15 has brought it. Distributions port it back: RHEL 9's kernel is called 5.14.
    """
    try:
        types = (Path(root) / "sys/kernel/btf/vmlinux").read_bytes()
    except OSError:
        return False
    return b"\0BPF_FUNC_get_attach_cookie\0" in types


def describe_host(root, run):
    """The facts that a verdict follows from: those of doctor --json, and systemd."""
    uname = os.uname()
    release = (read_text(root, "/proc/sys/kernel/osrelease") or uname.release).strip()
    mounts = read_mounts(root)
    layout, cgroup2 = cgroup_layout(mounts)
    return {
        "kernel": release,
        "arch": uname.machine,
        "lockdown": read_lockdown(root),
        "securityfs": find_mount(mounts, "securityfs") is not None,
        "btf": (Path(root) / "sys/kernel/btf/vmlinux").exists(),
        "attach_cookies": has_attach_cookies(root),
        "cgroup2": cgroup2,
        "cgroup_layout": layout,
        "bpffs": BPFFS if (BPFFS, "bpf") in mounts else None,
        "systemd": systemd_version(root, run),
        "capabilities": read_bounding_capabilities(root),
    }


def refused_services(root):
    """The units to which throughline_node has refused the preload; ["?"] for a damaged file."""
    try:
        return list(json.loads(read_text(root, "/etc/throughline/node-refused.json") or "{}"))
    except (ValueError, TypeError):
        return ["?"]


def installed_agent(root):
    """The release, whether the unit has a directory for drop-ins, units of Node.js to look at."""
    current = Path(root) / "opt/throughline/current"
    drop_ins = Path(root) / f"etc/systemd/system/{UNIT}.d"
    return {
        "release": Path(os.readlink(current)).name if current.is_symlink() else None,
        "drop_in_directory": drop_ins.is_dir(),
        "node_services": sorted(
            {
                *(
                    path.parent.name[: -len(".d")]
                    for path in drop_ins.parent.glob("*.service.d/throughline-node.conf")
                ),
                *refused_services(root),
            }
        ),
    }
