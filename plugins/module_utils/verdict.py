# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""From the facts of a host to a verdict per feature group, with reason and fix."""

from __future__ import annotations

from .host import OLDEST_PYTHON, version_tuple

OLDEST_KERNEL = (5, 10)
OLDEST_GO_KERNEL = (5, 15)  # the first whose uprobes have cookies
OLDEST_GLIBC = (2, 33)  # what the bundle's compiled parts need
OLDEST_SYSTEMD = 247  # the first that knows CAP_BPF and CAP_PERFMON by name on every build
ARCHITECTURES = ("x86_64",)
MODES = ("none", "observe", "network", "write")
GROUPS = ("observe", "headers", "packets", "tls", "go", "go_write")
NETWORK_CAPABILITIES = ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN")
PROBING_CAPABILITIES = ("CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE")


def dotted(version):
    """(3, 10) as '3.10'."""
    return ".".join(str(part) for part in version)


def common_obstacles(host):
    """[(reason, fix)] that keep every network group off, the most basic first."""
    obstacles = []
    if host["systemd"] is None:
        obstacles.append(
            ("systemd is not PID 1", "run the agent on a host that systemd has booted")
        )
    elif host["systemd"] < OLDEST_SYSTEMD:
        obstacles.append(
            (
                f"systemd is {host['systemd']}, but {OLDEST_SYSTEMD} or newer is required",
                "upgrade the distribution (Debian 12, Ubuntu 22.04, RHEL 9 or later have it)",
            )
        )
    if host["arch"] not in ARCHITECTURES:
        obstacles.append(
            (
                f"architecture is {host['arch']}, but this release has"
                f" bundles for {', '.join(ARCHITECTURES)} only",
                "leave the host out of the inventory group",
            )
        )
    if version_tuple(host["glibc"]) < OLDEST_GLIBC:
        obstacles.append(
            (
                f"glibc is {host['glibc'] or 'missing'}, but {dotted(OLDEST_GLIBC)}"
                " or newer is required",
                "upgrade the distribution (Debian 12, Ubuntu 22.04, RHEL 9 or later have it)",
            )
        )
    if host["python"] is None:
        obstacles.append(
            (
                f"no Python {dotted(OLDEST_PYTHON)} or newer is on PATH"
                f" (found: {', '.join(host['pythons']) or 'none'})",
                "install python3.11 (or any from 3.10 to 3.14) beside the system's own Python",
            )
        )
    if version_tuple(host["kernel"]) < OLDEST_KERNEL:
        obstacles.append(
            (
                f"kernel is {host['kernel']}, but {dotted(OLDEST_KERNEL)} or newer is required",
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
    """[(reason, fix)] where the kernel's config is known and has none of the alternatives."""
    if not options or any(options.get(name) in ("y", "m") for name in alternatives):
        return []
    names = " or ".join(alternatives)
    return [(f"the kernel is built without {names}", f"boot a kernel that is built with {names}")]


def capability_obstacles(host, name):
    """[(reason, fix)] where no unit can get a capability."""
    if name in host["capabilities"]:
        return []
    return [(f"PID 1 cannot hand out {name}", f"give the container or VM {name}")]


def uprobe_obstacles(host, options):
    """[(reason, fix)] against groups that probe programs of others."""
    return (
        common_obstacles(host)
        + option_obstacles(options, "CONFIG_UPROBES")
        + capability_obstacles(host, "CAP_SYS_PTRACE")
    )


def go_obstacles(host):
    """[(reason, fix)] against probes in Go programs on a kernel that the other groups run on."""
    if not OLDEST_KERNEL <= version_tuple(host["kernel"]) < OLDEST_GO_KERNEL:
        return []
    return [
        (
            f"kernel is {host['kernel']}, but go needs {dotted(OLDEST_GO_KERNEL)} or newer",
            "boot a newer kernel, or leave it: the others do not need it",
        )
    ]


def perf_obstacles(host, *, allow_sys_admin):
    """[(reason, fix)] where uprobes ask for CAP_SYS_ADMIN, to which an operator has to consent."""
    if host["uprobes"] != "admin":
        return []
    if allow_sys_admin:
        return capability_obstacles(host, "CAP_SYS_ADMIN")
    return [
        (
            "perf-based uprobes need CAP_SYS_ADMIN on this kernel (its fix of CVE-2025-38466), and"
            " it has no uprobe_multi links, which do not",
            "boot Linux 6.6 or later, or grant it (throughline_allow_sys_admin: true), or leave it",
        )
    ]


def write_obstacles(host, *, wanted):
    """[(reason, fix)] against writes into Go programs, where nothing keeps `go` from working."""
    obstacles = capability_obstacles(host, "CAP_SYS_ADMIN")
    if host["lockdown"] == "integrity":  # under confidentiality not even go works
        obstacles.append(
            (
                "lockdown is integrity: the kernel refuses bpf_probe_write_user",
                "boot without lockdown= and without Secure Boot, or do without go_write",
            )
        )
    if "go_write" in wanted and "go" not in wanted:
        obstacles.append(
            (
                "go is not wanted, and go_write writes into what go follows",
                "add go to throughline_groups, or take go_write out",
            )
        )
    return obstacles


def lockdown_obstacles(host):
    """[(reason, fix)] where programs may not read memory: docs/decisions/0006-older-kernels.md."""
    if host["lockdown"] != "confidentiality":
        return []
    return [
        (
            "lockdown is confidentiality: the kernel keeps programs from reading memory, by which"
            " they tell goroutines from threads",
            "boot with lockdown=integrity, or without lockdown",
        )
    ]


def judge(host, options, *, wanted, allow_sys_admin=False):
    """Verdict for each feature group, in the shape of doctor --json, and with `possible`.

    What asks for go_write consents to CAP_SYS_ADMIN where go_write can work, and there only: then
    the agent has it, and uprobes that ask for it are no obstacle to the others.
    """
    shared = common_obstacles(host) + option_obstacles(options, "CONFIG_BPF_SYSCALL")
    observe = shared + option_obstacles(options, "CONFIG_CGROUP_BPF") + lockdown_obstacles(host)
    headers = observe + option_obstacles(options, "CONFIG_BPF_STREAM_PARSER", "CONFIG_NET_SOCK_MSG")
    tls = observe + [found for found in uprobe_obstacles(host, options) if found not in observe]
    go = go_obstacles(host)
    go_write = tls + go + write_obstacles(host, wanted=wanted)
    consented = allow_sys_admin or ("go_write" in wanted and not go_write)
    tls += perf_obstacles(host, allow_sys_admin=consented)
    obstacles_of = {
        "observe": observe,
        "headers": headers,
        "packets": observe,
        "tls": tls,
        "go": tls + go,
        "go_write": go_write,
    }
    groups = {}
    for name, obstacles in obstacles_of.items():
        groups[name] = {
            "state": "off" if obstacles else "on",
            "wanted": name in wanted,
            "possible": not obstacles,
            "reason": "; ".join(reason for reason, _fix in obstacles),
            "fix": "; ".join(fix for _reason, fix in obstacles),
        }
    if groups["go_write"]["possible"] and not host["securityfs"]:
        groups["go_write"]["note"] = "securityfs is not mounted and no lockdown was found"
    return groups


def granted_capabilities(host, groups, *, allow_sys_admin=False):
    """What the role `capabilities` grants to the agent on this host; a test keeps the two alike."""
    granted = {name for name, group in groups.items() if group["wanted"] and group["possible"]}
    found = set()
    if granted & {"observe", "headers", "packets"}:
        found.update(NETWORK_CAPABILITIES)
    if granted & {"tls", "go", "go_write"}:
        found.update(PROBING_CAPABILITIES)
    if granted & {"tls", "go"}:
        found.update({"CAP_LEASE"}.intersection(host["capabilities"]))
    for_uprobes = allow_sys_admin and host["uprobes"] == "admin" and granted & {"tls", "go"}
    if "go_write" in granted or for_uprobes:
        found.add("CAP_SYS_ADMIN")
    return sorted(found)


def mode_of(groups):
    """The host's mode: the most that its groups allow together."""
    if groups["observe"]["state"] != "on":
        return "none"
    if groups["headers"]["state"] != "on":
        return "observe"
    return "write" if groups["go_write"]["possible"] else "network"


def shortfall(verdict, required):
    """What to tell an operator whose host is below the required mode, or None."""
    if MODES.index(verdict["mode"]) >= MODES.index(required):
        return None
    needed = {"write": ("observe", "headers", "go_write"), "network": ("observe", "headers")}
    lines = [f"Found mode '{verdict['mode']}', required mode '{required}'."]
    seen = set()
    for name in needed.get(required, ("observe",)):
        group = verdict["groups"][name]
        said = (group["reason"], group["fix"])
        if group.get("possible", group["state"] == "on") or said in seen:
            continue
        seen.add(said)
        lines.append(f"{name} is off: {group['reason']}. Remedy: {group['fix']}.")
    lines.append("Or lower throughline_required_mode for this host.")
    return " ".join(lines)
