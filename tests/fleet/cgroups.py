"""The cgroups of a fleet: one for each host, so that a host can be killed and removed as a whole.

systemd-nspawn puts a host into `payload` below the cgroup it is started in. On a hybrid machine it
makes the same directories in systemd's own version 1 hierarchy; these are removed as well.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
PARENT = "throughline-fleet"
KILL_SECONDS = 10.0


def _mounts() -> Iterator[tuple[Path, str, str]]:
    """Mount point, filesystem type and super options of every mount."""
    for line in MOUNTINFO.read_text().splitlines():
        before, _, after = line.partition(" - ")
        filesystem, _, options = after.split(" ", 2)
        yield Path(before.split()[4]), filesystem, options


def cgroup2() -> Path:
    """Where the unified hierarchy is mounted. Raises FileNotFoundError when it is not."""
    for point, filesystem, _ in _mounts():
        if filesystem == "cgroup2":
            return point
    raise FileNotFoundError("no cgroup2 is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup")


def _hierarchies() -> list[Path]:
    found = [cgroup2()]
    for point, filesystem, options in _mounts():
        if filesystem == "cgroup" and "name=systemd" in options.split(","):
            found.append(point)
    return found


def fleet(name: str) -> Path:
    """The cgroup that holds the hosts of fleet `name`."""
    return cgroup2() / PARENT / name


def create(name: str, host: str) -> Path:
    """Makes and returns the cgroup of one host."""
    directory = fleet(name) / host
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def kill(directory: Path) -> None:
    """Ends every process below `directory` and waits until they are gone.

    Raises TimeoutError when some outlive `KILL_SECONDS`; needs Linux 5.14 for cgroup.kill.
    """
    if not directory.is_dir():
        return
    deadline = time.monotonic() + KILL_SECONDS
    while "populated 1" in (directory / "cgroup.events").read_text():
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes in {directory} did not end in {KILL_SECONDS:.0f} s")
        (directory / "cgroup.kill").write_text("1")
        time.sleep(0.02)


def remove(directory: Path) -> None:
    """Removes `directory` and all cgroups below it, in both hierarchies of a hybrid machine."""
    unified = cgroup2()
    relative = directory.relative_to(unified)
    for hierarchy in _hierarchies():
        top = hierarchy / relative
        if top.is_dir():
            # deepest first; only directories can be removed, their files go with them
            below = sorted(top.rglob("*/"), key=lambda entry: len(entry.parts), reverse=True)
            for entry in [*below, top]:
                if entry.is_dir():
                    _remove_one(entry)
        parent = hierarchy / PARENT
        if parent.is_dir() and not any(entry.is_dir() for entry in parent.iterdir()):
            parent.rmdir()


def _remove_one(directory: Path) -> None:
    """rmdir that allows the kernel a moment to let go of killed processes (EBUSY)."""
    deadline = time.monotonic() + KILL_SECONDS
    while True:
        try:
            directory.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
