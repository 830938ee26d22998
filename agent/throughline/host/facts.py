"""Facts about the host that decide which features work: mounts, lockdown, BTF, capabilities.

All of them come from files below `root`, so that tests can use another tree.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

# include/uapi/linux/capability.h: those that feature groups need
CAPABILITIES = {
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_LEASE": 28,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo, see proc(5)."""

    root: str
    point: Path
    kind: str
    read_only: bool
    device: tuple[int, int]  # major, minor: st_dev of the files in it


@dataclass(frozen=True, slots=True)
class Facts:
    kernel: str
    arch: str
    lockdown: str  # "none" | "integrity" | "confidentiality" | "absent"
    securityfs: bool
    btf: bool
    cgroup2: Path | None
    cgroup_layout: str  # "unified" | "hybrid" | "legacy" | "none"
    capabilities: tuple[str, ...]  # effective ones among CAPABILITIES


def mounts(root: Path = Path("/")) -> list[Mount]:
    """All mounts that this process sees."""
    found = []
    for line in _lines(root / "proc/self/mountinfo"):
        # Only these separators: a user who may mount can choose names with any other bytes.
        left, _, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4])
        options = fields[5].split(",") + (rest[2].split(",") if len(rest) > 2 else [])
        major, _, minor = fields[2].partition(":")
        device = (int(major), int(minor))
        found.append(Mount(fields[3], Path(point), rest[0], "ro" in options, device))
    return found


def _lines(path: Path) -> list[str]:
    """The lines of a file of /proc; bytes that are not UTF-8 stay as surrogates."""
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return text.removesuffix("\n").split("\n")


def gather(root: Path = Path("/")) -> Facts:
    """Reads all facts; a file that cannot be read counts as missing."""
    table = mounts(root)
    cgroup2 = [mount.point for mount in table if mount.kind == "cgroup2"]
    legacy = any(mount.kind == "cgroup" for mount in table)
    layout = "hybrid" if cgroup2 and legacy else "unified" if cgroup2 else "legacy"
    securityfs = any(mount.kind == "securityfs" for mount in table)
    return Facts(
        kernel=platform.release(),
        arch=platform.machine(),
        lockdown=_lockdown(root),
        securityfs=securityfs,
        btf=(root / "sys/kernel/btf/vmlinux").exists(),
        cgroup2=cgroup2[0] if cgroup2 else None,
        cgroup_layout=layout if cgroup2 or legacy else "none",
        capabilities=_capabilities(root),
    )


def is_bpffs(path: Path, root: Path = Path("/")) -> Mount | None:
    """The bpffs mount that holds `path`, or None.

    Devices are compared: by path, a mount that is hidden under another one would count.
    """
    try:
        device = os.stat(path).st_dev  # noqa: PTH116
    except OSError:
        return None
    wanted = (os.major(device), os.minor(device))
    found = [m for m in mounts(root) if m.kind == "bpf" and m.device == wanted]
    return found[-1] if found else None


def own_cgroup(cgroup2: Path, root: Path = Path("/")) -> int | None:
    """The id of the cgroup that this process is in, or None when it is outside of the mount."""
    for line in _lines(root / "proc/self/cgroup"):
        if line.startswith("0::/") and ".." not in line:
            try:
                return os.stat(cgroup2 / line[4:]).st_ino  # noqa: PTH116
            except OSError:
                return None
    return None


def _lockdown(root: Path) -> str:
    try:
        text = (root / "sys/kernel/security/lockdown").read_text()
    except OSError:
        return "absent"
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else "absent"


def _capabilities(root: Path) -> tuple[str, ...]:
    for line in _lines(root / "proc/self/status"):
        if line.startswith("CapEff:"):
            bits = int(line.split()[1], 16)
            return tuple(name for name, bit in CAPABILITIES.items() if bits >> bit & 1)
    return ()
