"""What each platform of the kernel matrix has to give: expected.yml, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

TABLE = Path(__file__).with_name("expected.yml")
GROUPS = ("observe", "headers")  # of this release; the others are off everywhere


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

    @property
    def on(self) -> list[str]:
        """The groups that work, which are those that the rollout asks for."""
        return [name for name, state in self.groups.items() if state == "on"]

    @property
    def cgroup2(self) -> str:
        """Where systemd mounts cgroup2 in that layout."""
        return "/sys/fs/cgroup/unified" if self.cgroup == "hybrid" else "/sys/fs/cgroup"

    @property
    def doctor_mode(self) -> str:
        """What doctor says once the agent runs: go_write, of `write`, is not in this release."""
        return {2: "network", 1: "observe", 0: "none"}[len(self.on)]


def load(table: Path = TABLE) -> dict[str, Platform]:
    """The platforms by name. Raises TypeError for a field that is missing or not known."""
    platforms = {}
    for name, entry in yaml.safe_load(table.read_text(encoding="utf-8")).items():
        lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
        platforms[name] = Platform(name=name, **{**entry, **lists})
        if tuple(platforms[name].groups) != GROUPS:
            raise TypeError(f"{name}: groups are {list(entry['groups'])}, not {list(GROUPS)}")
    return platforms
