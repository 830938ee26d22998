"""The cgroups of a fleet: one for each host, so that a host can be killed and removed as a whole.

systemd-nspawn puts a host into `payload` below the cgroup that it is started in.
"""

from __future__ import annotations

from pathlib import Path

from tests.fixtures import cgroup

PARENT = "throughline-fleet"


def all_fleets() -> Path:
    """The cgroup that holds all fleets."""
    return cgroup.cgroup2() / PARENT


def fleet(name: str) -> Path:
    """The cgroup that holds the hosts of fleet `name`."""
    return all_fleets() / name


def create(name: str, host: str) -> Path:
    """Makes and returns the cgroup of one host."""
    directory = fleet(name) / host
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def remove(directory: Path) -> None:
    """Removes the cgroup of a fleet or of a host, and the one of all fleets with the last fleet."""
    cgroup.remove(directory)
    for hierarchy in cgroup.hierarchies():
        parent = hierarchy / PARENT
        if parent.is_dir() and not any(entry.is_dir() for entry in parent.iterdir()):
            parent.rmdir()
