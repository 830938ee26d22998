"""The result that each platform of the kernel matrix must have: expected.yml, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).with_name("expected.yml")
GROUPS = (
    "observe",
    "headers",
    "packets",
    "tls",
    "go",
    "go_write",
    "java",
    "python",
    "proxies",
    "ruby",
    "node",
)


@dataclass(frozen=True, slots=True)
class Platform:
    """One entry of the table, whose head says what each field means."""

    name: str
    kernel: str
    lockdown: str
    cgroup: str
    mode: str
    groups: Mapping[str, str]
    unmounted: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    allow_sys_admin: bool = False
    probe_process: str = "auto"
    asks: tuple[str, ...] = ("go_write",)
    silent: bool = False
    arch: str = "amd64"

    @property
    def wanted(self) -> list[str]:
        """The groups that the rollout asks for."""
        return [name for name in GROUPS if name != "go_write" or name in self.asks]

    @property
    def on(self) -> list[str]:
        """The groups that work, of those that the rollout asks for."""
        return [name for name, state in self.groups.items() if state == "on"]

    @property
    def cgroup2(self) -> str:
        """Where systemd mounts cgroup2 in that layout."""
        return "/sys/fs/cgroup/unified" if self.cgroup == "hybrid" else "/sys/fs/cgroup"

    @property
    def doctor_mode(self) -> str:
        """What doctor says once the agent runs: the most that is on, not the most that could be."""
        if "go_write" in self.on:
            return "write"
        if "headers" in self.on:
            return "network"
        return "observe" if self.on else "none"

    @property
    def secure(self) -> bool:
        """Whether the shop uses HTTPS: only where the context can travel in TCP options."""
        return {"packets", "tls"} <= set(self.on)

    def joins(self, http: str) -> dict[str, str]:
        """What carries the context between the Go services, "" for nothing.

        go-front calls go-middle by HTTPS in that version of HTTP, which calls go-back by gRPC.
        """
        if "go_write" in self.on:
            frames = "" if self.arch == "arm64" else "header"  # HTTP/2, gRPC: decision 28
            return {"go-middle": "header" if http == "1.1" else frames, "go-back": frames}
        option = "packet" if {"go", "packets"} <= set(self.on) and http == "1.1" else ""
        return {"go-middle": option, "go-back": ""}

    @property
    def asked(self) -> dict[str, Any]:
        """What the rollout sets besides rollout.yml."""
        asked: dict[str, Any] = {"throughline_groups": self.wanted} if self.asks else {}
        if self.probe_process != "auto":
            asked["throughline_probe_process"] = self.probe_process
        return asked | ({"throughline_allow_sys_admin": True} if self.allow_sys_admin else {})

    @property
    def uprobes(self) -> str | None:
        """By which way the agent attaches uprobes; None where no group has any."""
        if not {"tls", "go", "python", "proxies"} & set(self.on):
            return None
        if self.has_multi:
            return "multi"
        return "perf" if self.allow_sys_admin or "go_write" in self.on else "process"

    @property
    def version(self) -> tuple[int, int]:
        """Of the kernel, (7, 99) for "7."."""
        major, minor = self.kernel.split(".")[:2]
        return int(major), int(minor or "99")

    @property
    def has_multi(self) -> bool:
        """Linux 6.6 and later, which has uprobe_multi and tcx."""
        return self.version >= (6, 6)

    @property
    def shows_unix(self) -> bool:
        """Whether Unix sockets are followed: docs/decisions/0031-before-6.3.md."""
        return self.version >= ((6, 4) if self.arch == "arm64" else (5, 15))

    def word(self, name: str) -> str:
        """The word of check.yml for a group on the bare host."""
        if self.groups[name] == "on":
            return "works"
        return "possible" if name not in self.wanted and self.mode == "write" else "off"


def load(table: Path = TABLE) -> dict[str, Platform]:
    """The platforms by name. Raises TypeError for a field that is missing or not known."""
    platforms = {}
    for name, entry in yaml.safe_load(table.read_text(encoding="utf-8")).items():
        lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
        platforms[name] = Platform(name=name, **{**entry, **lists})
        if tuple(platforms[name].groups) != GROUPS:
            raise TypeError(f"{name}: groups are {list(entry['groups'])}, not {list(GROUPS)}")
    return platforms
