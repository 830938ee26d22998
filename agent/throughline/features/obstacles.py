"""Obstacles that keep a feature group off before anything of it is loaded."""

from __future__ import annotations

import os

from throughline.config.model import Config
from throughline.features import objects, reasons
from throughline.features.state import GroupState, failed, off
from throughline.features.table import GROUPS, Group, Uprobes
from throughline.host import facts
from throughline.probes import trials


def of_host(config: Config, found: facts.Facts) -> GroupState | None:
    """The obstacle that keeps every group off, or None."""
    where = config.agent.bpffs
    mount = facts.is_bpffs(where)
    if found.cgroup2 is None:
        return failed(
            "cgroup2 is not mounted (no cgroup2 line in /proc/self/mountinfo)",
            "mount -t cgroup2 none /sys/fs/cgroup/unified, or run the role `mounts`",
        )
    if not found.btf:
        return failed(
            "/sys/kernel/btf/vmlinux is missing: the kernel has no type information (CO-RE)",
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
        )
    if not any(objects.directory().glob("*.bpf.o")):
        return failed(f"no BPF objects in {objects.directory()}", reasons.REINSTALL)
    if mount is None:
        return failed(
            f"{where} is not a bpffs",
            f"run the role `mounts`, or: mount -t bpf throughline {where}",
        )
    if mount.read_only:
        return failed(f"{where} is mounted read-only", f"mount -o remount,rw {mount.point}")
    if not os.access(where, os.R_OK | os.W_OK | os.X_OK):
        return failed(
            f"{where} belongs to another user: this one may not write there",
            f"chown it to the agent's user and chmod 0700 {where}, or run the role `mounts`",
        )
    return None


def of_group(group: Group, config: Config, found: facts.Facts) -> GroupState | None:
    """The obstacle that the configuration or a missing capability is for a group, or None."""
    if group.switch and group.switch not in config.switches:
        return off(f"{group.switch} is off", "")
    if group.name == "packets" and not config.propagation.peers:
        return off(
            "propagation.peers is empty",
            "list the networks of the fleet there; the role `agent` takes them from the inventory",
        )
    if group.needs and of_group(GROUPS[group.needs], config, found) is not None:
        return without_needed(group)
    if group.writes and "CAP_SYS_ADMIN" not in found.capabilities:
        return reasons.without_sys_admin(found)
    probes = group.uprobes is not Uprobes.NONE
    if (probes or group.reads) and "CAP_SYS_PTRACE" not in found.capabilities:
        # the role grants the capability only where the kernel gives uprobes: try them first
        return (_without_uprobes(group, found) if probes else None) or off(
            "missing CAP_SYS_PTRACE, without which the files of services cannot be found",
            f"run the role `capabilities` with {group.name} in throughline_groups, or be root",
        )
    return None


def of_objects(group: Group, loaded: objects.Objects) -> GroupState | None:
    """The obstacle that a missing object is: this kernel or this installation has none. Or None."""
    if all(loaded.has(name) for name in group.objects):
        return None
    if any(loaded.is_for_newer(name) for name in group.objects):
        return off(
            "the programs for kernels before 5.15 do not have it",
            "boot Linux 5.15 or later, or leave it: the other groups do without",
        )
    return off(f"{group.name} is not among the BPF objects", reasons.REINSTALL)


def without_needed(group: Group) -> GroupState:
    """The group that this one needs is off."""
    return off(f"{group.needs} is off", f"see {group.needs}")


def _without_uprobes(group: Group, found: facts.Facts) -> GroupState | None:
    """The kernel's refusal of uprobes to this agent, or None when it gives them."""
    try:
        trials.find_kind()
    except OSError as error:
        return reasons.without_uprobes(group, error, found)
    return None
