"""Removes what killed runs leave behind. A record says which Molecule belongs to which run.

A run of the matrix puts each Molecule that it starts on record, so that one whose run was killed is
found and ended: it would boot the VM again that somebody removes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from tests.vms import hypervisor, processes
from tests.vms.processes import Process


def _records() -> Path:
    return hypervisor.directory() / "runs"


def record(name: str, pid: int) -> None:
    """Puts the Molecule of a platform on record, as this process's own."""
    _records().mkdir(parents=True, exist_ok=True)
    run = {"owner": processes.identify(os.getpid()), "molecule": processes.identify(pid)}
    (_records() / f"{name}.json").write_text(json.dumps(run) + "\n")


def _read(file: Path, key: str) -> Process:
    pid, started = json.loads(file.read_text())[key]
    return pid, started


def remove(name: str) -> None:
    """Ends a platform's Molecule and its VM, and removes all of them."""
    file = _records() / f"{name}.json"
    if file.exists():
        processes.end_tree(_read(file, "molecule"))
    hypervisor.down(name)
    file.unlink(missing_ok=True)


def names() -> list[str]:
    """All platforms with processes, files or VMs."""
    return sorted({*hypervisor.names(), *(file.stem for file in _records().glob("*.json"))})


def orphans() -> list[str]:
    """The platforms of runs that were killed."""
    files = _records().glob("*.json")
    return sorted(file.stem for file in files if not processes.alive(_read(file, "owner")))


def clean(*, say: Callable[[str], None]) -> None:
    """Removes all VMs of all runs, and ends the processes that use them."""
    for name in names():
        say(f"removing {name}")
        remove(name)
