"""Which services of Node.js have the preload, and why the others have none.

The facts are the drop-ins that the role has written (plugins/modules/throughline_node.py), what it
has refused, and how the processes of the services were started.
"""

from __future__ import annotations

import enum
import errno
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from throughline.services.units import UNIT_SUFFIXES, unit_name
from throughline.steps import Turns

ETC = Path("/etc")
REFUSED = "throughline/node-refused.json"
_DROP_IN = "throughline-node.conf"
_MAX_BYTES = 1 << 20
_EACH_TURN = 64  # units, less than 1 ms


class Preload(str, enum.Enum):
    """Whether a service has the preload."""

    ACTIVE = "active"  # configured, and a process was started with it
    NOT_RESTARTED = "not_restarted"  # configured, but all processes were started without it
    REMOVED = "removed"  # not configured any more, but a process was started with it
    REFUSED = "refused"  # named, but the role gave it none
    NOT_CONFIGURED = "not_configured"
    NO_SERVICE = "no_service"  # a container, a session, a service of another systemd
    UNKNOWN = "unknown"  # the drop-in could not be looked for


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process runs."""

    unit: str  # of the host's systemd, "" for none
    is_service: bool  # of the host's systemd, so that a drop-in reaches the process


def place_of(pid: int, *, proc: Path) -> Place:
    """Raises OSError."""
    with (proc / str(pid) / "cgroup").open("rb") as file:
        lines = os.fsdecode(file.read(_MAX_BYTES)).splitlines()
    path = next((line[3:] for line in lines if line.startswith("0::")), "")
    parts = PurePosixPath(path).parts
    unit = next((part for part in parts if part.endswith(UNIT_SUFFIXES)), "")
    # a unit below another one is of a user's systemd, or of one in a container
    return Place(unit, unit.endswith(".service") and unit_name(path) == unit)


def has_drop_in(unit: str, *, etc: Path) -> bool:
    """Whether the role has written a drop-in, for the unit or its template. Raises OSError."""
    for name in {unit, _template(unit)}:
        try:
            (etc / "systemd/system" / f"{name}.d" / _DROP_IN).stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                raise
        else:
            return True
    return False


def refused(*, etc: Path = ETC) -> dict[str, str]:
    """Unit -> why the role gave it no drop-in. Raises OSError, and ValueError for another text."""
    try:
        with (etc / REFUSED).open("rb") as file:
            found = json.loads(file.read(_MAX_BYTES))
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{etc / REFUSED} is no object")
    return {str(unit): str(reason) for unit, reason in found.items()}


class Units:
    """What is configured for the units in which Node.js runs."""

    def __init__(self, failures: Counter[str], *, etc: Path = ETC) -> None:
        self._failures = failures
        self._etc = etc
        self._drop_ins: dict[str, bool | None] = {}  # None: could not be looked for
        self._refused: Mapping[str, str] = {}
        self._is_readable = True

    def looking(self, units: Iterable[str]) -> Turns[None]:
        """Looks again at the files of these units."""
        before, found = self._drop_ins, dict[str, bool | None]()
        for number, unit in enumerate(units, 1):
            try:
                found[unit] = has_drop_in(unit, etc=self._etc)
            except OSError:
                found[unit] = None
                if before.get(unit, False) is not None:
                    self._failures["drop_in_unreadable"] += 1
            if number % _EACH_TURN == 0:
                yield
        self._drop_ins = found
        try:
            self._refused = refused(etc=self._etc)
        except (OSError, ValueError):
            if self._is_readable:
                self._failures["refusals_unreadable"] += 1
            self._refused, self._is_readable = {}, False
        else:
            self._is_readable = True

    def judge(self, place: Place, *, preloaded: int) -> tuple[Preload, str]:
        """Whether a unit has the preload, and the reason where the role has refused it.

        `preloaded`: how many of the unit's processes were started with it.
        """
        if not place.is_service:
            return Preload.NO_SERVICE, ""
        has = self._drop_ins.get(place.unit)
        if has is None:
            return Preload.UNKNOWN, ""
        if has:
            return (Preload.ACTIVE if preloaded else Preload.NOT_RESTARTED), ""
        reason = self._refused.get(place.unit) or self._refused.get(_template(place.unit), "")
        if preloaded:
            return Preload.REMOVED, reason
        return (Preload.REFUSED, reason) if reason else (Preload.NOT_CONFIGURED, "")


def _template(unit: str) -> str:
    """The template of an instance, the unit itself where it is none."""
    prefix, at, _instance = unit.partition("@")
    return f"{prefix}@.service" if at else unit
