# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The feature groups, as the collection needs them: one table.

The agent has a table of its own, agent/throughline/features/table.py, which cannot be imported on a
controller or on a host without the agent. tests/unit/ansible/test_groups.py compares both.
"""

from __future__ import annotations

from typing import NamedTuple

NETWORK_CAPABILITIES = ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN")
PROBING_CAPABILITIES = ("CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE")


class Group(NamedTuple):
    """One feature group."""

    name: str
    capabilities: tuple[str, ...]  # without one of them the group is off
    optional_capabilities: tuple[str, ...] = ()  # the group uses them where the host has them
    switch: str = ""  # the key of the agent's configuration that turns it off; "": none
    kernel: tuple[int, int] = (5, 10)  # the oldest that can run it
    uprobes: bool = False  # on some kernels they need CAP_SYS_ADMIN
    default: bool = True  # wanted unless the operator says otherwise


TABLE = (
    Group("observe", NETWORK_CAPABILITIES),
    Group("headers", NETWORK_CAPABILITIES, switch="propagation.headers"),
    Group("packets", NETWORK_CAPABILITIES, switch="propagation.packets"),
    Group(
        "tls",
        PROBING_CAPABILITIES,
        optional_capabilities=("CAP_LEASE",),
        switch="instrumentation.tls",
        uprobes=True,
    ),
    Group(
        "go",
        PROBING_CAPABILITIES,
        optional_capabilities=("CAP_LEASE",),
        switch="instrumentation.go",
        kernel=(5, 15),  # the first whose uprobes have cookies
        uprobes=True,
    ),
    Group(
        "go_write",
        (*PROBING_CAPABILITIES, "CAP_SYS_ADMIN"),
        switch="instrumentation.go_write",
        kernel=(5, 15),
        uprobes=True,
        default=False,
    ),
    Group("java", PROBING_CAPABILITIES, switch="instrumentation.java"),
    Group(
        "python",
        PROBING_CAPABILITIES,
        optional_capabilities=("CAP_LEASE",),
        switch="instrumentation.python",
        kernel=(5, 15),
        uprobes=True,
    ),
    Group(
        "proxies",
        PROBING_CAPABILITIES,
        optional_capabilities=("CAP_LEASE",),
        switch="instrumentation.proxies",
        kernel=(5, 15),
        uprobes=True,
    ),
    Group("ruby", PROBING_CAPABILITIES, switch="instrumentation.ruby"),
    Group("node", PROBING_CAPABILITIES, switch="instrumentation.node"),
)
GROUPS = {group.name: group for group in TABLE}
DEFAULT_GROUPS = tuple(group.name for group in TABLE if group.default)
# The modes of a host, the strongest first: the groups that it must be able to run.
MODES = {
    "write": ("observe", "headers", "go_write"),
    "network": ("observe", "headers"),
    "observe": ("observe",),
    "none": (),
}


def switch(group, state):
    """The agent's configuration that sets the switch of a group."""
    section, key = group.switch.split(".")
    return {section: {key: state}}


def is_switched_off(group, config):
    """Returns whether the agent's configuration switches a group off."""
    section, _dot, key = group.switch.partition(".")
    return (config.get(section) or {}).get(key, "auto") != "auto"


def granted_capabilities(groups, *, uprobes, available, allow_sys_admin):
    """The capabilities that the agent's unit gets, for the groups that are wanted and possible.

    `uprobes` is what uprobes.need() found, `available` are the capabilities that PID 1 can hand to
    a unit. A group that the host cannot run gets nothing.
    """
    found = set()
    for group in TABLE:
        if group.name in groups:
            found.update(group.capabilities)
            found.update(set(group.optional_capabilities) & set(available))
            if group.uprobes and uprobes == "admin" and allow_sys_admin:
                found.add("CAP_SYS_ADMIN")
    return sorted(found)
