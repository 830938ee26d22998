"""The status of the agent: its content, and the file that is written each second.

`throughline status`, the roles of Ansible and health gates read the file. Its keys are those of
`as_json`; docs/reference/json.md explains them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from throughline.agent.parents import ParentCounts
from throughline.bpf.tc import Place
from throughline.export.outcome import ExportStatus
from throughline.features.programs import Attached
from throughline.features.state import GroupState
from throughline.text import to_json


@dataclass(slots=True)
class KindCounts:
    """Requests of one service that it has served, or that it has made."""

    requests: int = 0
    errors: int = 0
    sampled: int = 0  # spans

    def as_json(self) -> dict[str, Any]:
        return {"requests": self.requests, "errors": self.errors, "sampled": self.sampled}


@dataclass(frozen=True, slots=True)
class ServiceCounts:
    """The requests of one service, by kind: "server" or "client"."""

    unit: str
    kinds: dict[str, KindCounts]
    parents: ParentCounts | None = None  # of its calls

    def as_json(self) -> dict[str, Any]:
        found = {name: kind.as_json() for name, kind in self.kinds.items()}
        if self.parents is not None:
            found["parents"] = self.parents.as_json()
        return {"unit": self.unit, **found}


@dataclass(frozen=True, slots=True)
class PacketsStatus:
    """Where the group `packets` is attached."""

    peers: tuple[str, ...]
    new_connections: tuple[str, ...]  # cgroups whose new connections get the option
    older_connections: tuple[Place, ...]  # interfaces on which older ones do
    refused: Mapping[str, str]  # interface -> why not

    def as_json(self) -> dict[str, Any]:
        return {
            "peers": list(self.peers),
            "new_connections": list(self.new_connections),
            "older_connections": [place.as_json() for place in self.older_connections],
            "refused": dict(self.refused),
        }


@dataclass(frozen=True, slots=True)
class FilesStatus:
    """The probed files of one group: path, programs, processes, and what a provider adds."""

    files: tuple[Mapping[str, Any], ...]

    def as_json(self) -> dict[str, Any]:
        return {"files": [dict(file) for file in self.files]}


@dataclass(frozen=True, slots=True)
class Status:
    """The status at one moment. A part of a group is None while the group is off."""

    version: str
    pid: int
    started_unix: float
    counting_since_unix_ns: int
    updated_unix: float
    missing: tuple[str, ...]  # links that somebody has detached
    absent_cgroups: tuple[str, ...]
    fionread_broken: bool
    legacy_programs: bool
    uprobes: str | None  # by which way, see probes/uprobes.py
    groups: Mapping[str, GroupState]
    attached: tuple[Attached, ...]
    packets: PacketsStatus | None
    files: Mapping[str, FilesStatus | None]  # the probed files, by group
    counters: Mapping[str, int]
    services: Mapping[str, ServiceCounts]
    export: ExportStatus

    @property
    def healthy(self) -> bool:
        """Returns whether every wanted group is on and stays attached."""
        return not self.missing and all(g.is_on or not g.wanted for g in self.groups.values())

    def as_json(self) -> dict[str, Any]:
        """The content of the file."""
        return {
            "version": self.version,
            "pid": self.pid,
            "started_unix": self.started_unix,
            "counting_since_unix_ns": self.counting_since_unix_ns,
            "updated_unix": self.updated_unix,
            "healthy": self.healthy,
            "missing": list(self.missing),
            "absent_cgroups": list(self.absent_cgroups),
            "fionread_broken": self.fionread_broken,
            "legacy_programs": self.legacy_programs,
            "uprobes": self.uprobes,
            "groups": {name: group.as_json() for name, group in self.groups.items()},
            "attached": {"programs": [program.as_json() for program in self.attached]},
            "packets": self.packets and self.packets.as_json(),
            **{group: files and files.as_json() for group, files in self.files.items()},
            "counters": dict(self.counters),
            "services": {name: service.as_json() for name, service in self.services.items()},
            "export": self.export.as_json(),
        }


@dataclass(frozen=True, slots=True)
class StatusWriter:
    """Replaces the file at once: a reader sees the whole of the old one or of the new one."""

    path: Path

    def write(self, status: Mapping[str, Any]) -> None:
        """Writes the content, see `Status.as_json`. Raises OSError."""
        partial = self.path.with_name(f".{self.path.name}.partial")
        text = to_json(status)
        try:
            partial.write_text(text, encoding="ascii")
            partial.chmod(0o644)
            partial.replace(self.path)
        except OSError as error:
            where = f"status cannot be written: {self.path}"
            raise OSError(error.errno, f"{where}: {error.strerror}") from error

    def remove(self) -> None:
        """Removes the file when the agent stops. Raises OSError, but not when there is none."""
        self.path.unlink(missing_ok=True)
