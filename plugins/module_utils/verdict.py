# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The verdict on a host for each feature group, with reason and fix, from the host's facts."""

from __future__ import annotations

from .groups import GROUPS, MODES, NETWORK_CAPABILITIES, granted_capabilities
from .host import version_tuple

OLDEST_SYSTEMD = 247  # the first that knows CAP_BPF and CAP_PERFMON by name on every build
# The kernel's names of the architectures that there are bundles for, and the oldest kernel on each.
# On arm64 the kernel's JIT has the atomic additions that the programs need since Linux 5.18.
ARCHITECTURES = {"x86_64": GROUPS["observe"].kernel, "aarch64": (5, 18)}
UPGRADE = "upgrade the distribution (Debian 12, Ubuntu 22.04, RHEL 9 or later have it)"


def dotted(version):
    """A version for people: '3.10' for (3, 10)."""
    return ".".join(str(part) for part in version)


def oldest_kernel(host):
    """The oldest kernel that can run any group on the host's architecture."""
    return ARCHITECTURES.get(host["arch"], GROUPS["observe"].kernel)


def common_obstacles(host):
    """[(reason, fix)] that keep every feature group off, the most basic one first."""
    obstacles = []
    if host["systemd"] is None:
        obstacles.append(
            ("systemd is not PID 1", "run the agent on a host that systemd has booted")
        )
    elif host["systemd"] < OLDEST_SYSTEMD:
        obstacles.append(
            (
                f"systemd is {host['systemd']}, but {OLDEST_SYSTEMD} or newer is required",
                UPGRADE,
            )
        )
    if host["arch"] not in ARCHITECTURES:
        obstacles.append(
            (
                f"architecture is {host['arch']}, and there are bundles for"
                f" {', '.join(ARCHITECTURES)} only",
                "leave the host out of the inventory group",
            )
        )
    oldest = oldest_kernel(host)
    if version_tuple(host["kernel"]) < oldest:
        on = "" if oldest == GROUPS["observe"].kernel else f" on {host['arch']}"
        obstacles.append(
            (
                f"kernel is {host['kernel']}, but {dotted(oldest)} or newer is required{on}",
                "boot a newer kernel (a distribution's HWE or backports kernel will do)",
            )
        )
    if not host["btf"]:
        obstacles.append(
            (
                "/sys/kernel/btf/vmlinux is missing",
                "boot a kernel that is built with CONFIG_DEBUG_INFO_BTF=y",
            )
        )
    if host["cgroup2"] is None:
        obstacles.append(
            (
                f"cgroup2 is not mounted (layout: {host['cgroup_layout']})",
                "boot with systemd.unified_cgroup_hierarchy=1, so that units are in cgroup2",
            )
        )
    missing = [name for name in NETWORK_CAPABILITIES if name not in host["capabilities"]]
    if missing:
        obstacles.append(
            (
                f"PID 1 cannot hand out {', '.join(missing)}",
                "give the container or VM these capabilities",
            )
        )
    return obstacles


def option_obstacles(options, *alternatives):
    """[(reason, fix)] where the kernel's build options are known and include no alternative."""
    if not options or any(options.get(name) in ("y", "m") for name in alternatives):
        return []
    names = " or ".join(alternatives)
    return [(f"the kernel is built without {names}", f"boot a kernel that is built with {names}")]


def capability_obstacles(host, name):
    """[(reason, fix)] where PID 1 cannot hand a capability to a unit."""
    if name in host["capabilities"]:
        return []
    return [(f"PID 1 cannot hand out {name}", f"give the container or VM {name}")]


def uprobe_obstacles(host, options):
    """[(reason, fix)] that keep groups with uprobes off."""
    return (
        common_obstacles(host)
        + option_obstacles(options, "CONFIG_UPROBES")
        + capability_obstacles(host, "CAP_SYS_PTRACE")
    )


def version_obstacles(host, name):
    """[(reason, fix)] on a kernel that is too old for the group and new enough for others.

    What these groups miss there is cookies of uprobes, which distributions port back.
    """
    oldest = GROUPS[name].kernel
    if not oldest_kernel(host) <= version_tuple(host["kernel"]) < oldest or host["attach_cookies"]:
        return []
    return [
        (
            f"kernel is {host['kernel']}, but {name} needs {dotted(oldest)} or newer",
            "boot a newer kernel, or leave it: the other groups do not need it",
        )
    ]


def perf_obstacles(host, *, allow_sys_admin, probe_process):
    """[(reason, fix)] where uprobes need CAP_SYS_ADMIN, and nobody may have it.

    Either the agent has it, by the operator's consent, or the process that opens uprobes for it.
    """
    if host["uprobes"] != "admin":
        return []
    if allow_sys_admin or probe_process:
        return capability_obstacles(host, "CAP_SYS_ADMIN")
    return [
        (
            "perf-based uprobes need CAP_SYS_ADMIN on this kernel (its fix of CVE-2025-38466), and"
            " it has no uprobe_multi links, which do not",
            "boot Linux 6.6 or later, or let a process of its own open them"
            " (throughline_probe_process: auto), or grant it to the agent"
            " (throughline_allow_sys_admin: true), or leave it",
        )
    ]


def write_obstacles(host, *, wanted):
    """[(reason, fix)] that keep go_write off where `go` works."""
    obstacles = capability_obstacles(host, "CAP_SYS_ADMIN")
    if host["lockdown"] == "integrity":  # under confidentiality go does not work either
        obstacles.append(
            (
                "lockdown is integrity: the kernel refuses bpf_probe_write_user",
                "boot without lockdown= and without Secure Boot, or do without go_write",
            )
        )
    if "go_write" in wanted and "go" not in wanted:
        obstacles.append(
            (
                "go is not wanted, and go_write needs go",
                "add go to throughline_groups, or remove go_write",
            )
        )
    return obstacles


def lockdown_obstacles(host):
    """[(reason, fix)] where lockdown forbids BPF programs to read memory.

    docs/decisions/0006-older-kernels.md says why that concerns every group.
    """
    if host["lockdown"] != "confidentiality":
        return []
    return [
        (
            "lockdown is confidentiality: the kernel forbids BPF programs to read memory, and they"
            " need that to tell goroutines from threads",
            "boot with lockdown=integrity, or without lockdown",
        )
    ]


def judge_host(host, options, *, wanted, allow_sys_admin=False, probe_process=True):
    """The verdict from facts alone: host, groups, mode and the capabilities for the unit.

    And whether the host needs the process that opens uprobes, where `probe_process` allows it.
    """
    groups = judge_groups(
        host, options, wanted=wanted, allow_sys_admin=allow_sys_admin, probe_process=probe_process
    )
    served = [name for name in GROUPS if groups[name]["wanted"] and groups[name]["possible"]]
    capabilities = granted_capabilities(
        served,
        uprobes=host["uprobes"],
        available=host["capabilities"],
        allow_sys_admin=allow_sys_admin,
    )
    needed = (
        probe_process
        and host["uprobes"] == "admin"
        and "CAP_SYS_ADMIN" not in capabilities
        and any(GROUPS[name].uprobes for name in served)
    )
    for name in served:
        if needed and GROUPS[name].uprobes:
            groups[name]["note"] = "a process of its own opens the uprobes, with CAP_SYS_ADMIN"
    return {
        "source": "preflight",
        "version": None,
        "host": host,
        "groups": groups,
        "mode": mode_of(groups),
        "unit_capabilities": capabilities,
        "probe_process": needed,
    }


def judge_groups(host, options, *, wanted, allow_sys_admin, probe_process):
    """The verdict for each feature group, in the shape of doctor --json, and with `possible`.

    `options` are those of the kernel's build. go_write in `wanted` is consent to CAP_SYS_ADMIN on
    hosts that can run it: there the agent has it, and tls and go can use it as well.
    """
    shared = common_obstacles(host) + option_obstacles(options, "CONFIG_BPF_SYSCALL")
    observe = shared + option_obstacles(options, "CONFIG_CGROUP_BPF") + lockdown_obstacles(host)
    headers = observe + option_obstacles(options, "CONFIG_BPF_STREAM_PARSER", "CONFIG_NET_SOCK_MSG")
    tls = observe + [found for found in uprobe_obstacles(host, options) if found not in observe]
    go = version_obstacles(host, "go")
    python = version_obstacles(host, "python")
    proxies = version_obstacles(host, "proxies")
    go_write = tls + go + write_obstacles(host, wanted=wanted)
    consented = allow_sys_admin or ("go_write" in wanted and not go_write)
    tls += perf_obstacles(host, allow_sys_admin=consented, probe_process=probe_process)
    obstacles_of = {
        "observe": observe,
        "headers": headers,
        "packets": observe,
        "tls": tls,
        "go": tls + go,
        "python": tls + python,
        "proxies": tls + proxies,
        "go_write": go_write,
        "java": observe + capability_obstacles(host, "CAP_SYS_PTRACE"),
        "ruby": observe + capability_obstacles(host, "CAP_SYS_PTRACE"),
        "node": observe + capability_obstacles(host, "CAP_SYS_PTRACE"),
    }
    groups = {name: judge_group(obstacles_of[name], wanted=name in wanted) for name in GROUPS}
    if groups["go_write"]["possible"] and not host["securityfs"]:
        groups["go_write"]["note"] = "securityfs is not mounted and no lockdown was found"
    return groups


def judge_group(obstacles, *, wanted):
    """The verdict for one feature group."""
    return {
        "state": "off" if obstacles else "on",
        "wanted": wanted,
        "possible": not obstacles,
        "reason": "; ".join(reason for reason, _fix in obstacles),
        "fix": "; ".join(fix for _reason, fix in obstacles),
    }


def mode_of(groups):
    """The host's mode: the highest that its feature groups allow."""
    if groups["observe"]["state"] != "on":
        return "none"
    if groups["headers"]["state"] != "on":
        return "observe"
    return "write" if groups["go_write"]["possible"] else "network"


def shortfall(verdict, required):
    """The message for an operator whose host is below the required mode, or None."""
    order = list(MODES)  # the strongest first
    if order.index(verdict["mode"]) <= order.index(required):
        return None
    lines = [f"Found mode '{verdict['mode']}', required mode '{required}'."]
    seen = set()
    for name in MODES[required]:
        group = verdict["groups"][name]
        said = (group["reason"], group["fix"])
        if group.get("possible", group["state"] == "on") or said in seen:
            continue
        seen.add(said)
        lines.append(f"{name} is off: {group['reason']}. Remedy: {group['fix']}.")
    lines.append("Or lower throughline_required_mode for this host.")
    return " ".join(lines)
