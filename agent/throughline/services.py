"""Name the service behind a cgroup: cgroup id -> systemd unit -> service and its resource.

A cgroup id in the kernel is the inode number of the cgroup's directory in the cgroup2 mount, so
one walk over the directories names every service; no process is ever looked at.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from throughline.config import ServiceRule

# The name space that the OpenTelemetry semantic conventions set for service.instance.id as UUIDv5.
_INSTANCE_NAMESPACE = uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")
_UNIT_SUFFIXES = (".service", ".scope")
_ESCAPED = re.compile(r"\\x([0-9a-fA-F]{2})")
_GLOB = re.compile(r"[*?\[]")

DEFAULT_ROOT = "system.slice"
KEEP_VANISHED_SECONDS = 600.0
KEEP_VANISHED_COUNT = 4096
FORGET_UNKNOWN_SECONDS = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """A service as backends see it. Compared by identity: one object for each service."""

    name: str
    unit: str  # as systemctl shows it, "" outside of any unit
    cgroup: str  # path of the unit's cgroup below the cgroup2 mount, "" when unknown
    traced: bool
    attributes: Mapping[str, str]  # the whole resource


@dataclass(slots=True)
class _Entry:
    path: str
    service: Service
    vanished: float | None = None


def unescape(name: str) -> str:
    r"""A unit name with `\x2d` and the like resolved, see systemd-escape(1)."""
    if "\\" not in name:
        return name
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), name)


def unit_path(path: str) -> str:
    """The part of a cgroup path that ends with its innermost .service or .scope, else ""."""
    parts = PurePosixPath(path).parts
    for end in range(len(parts), 0, -1):
        if parts[end - 1].endswith(_UNIT_SUFFIXES):
            return "/".join(parts[:end])
    return ""


def match(rules: Sequence[ServiceRule], path: str) -> ServiceRule | None:
    """The first rule for the cgroup at `path`; None when no rule is for it.

    A systemd_unit glob is compared with the unit's name, escaped and not; a cgroup glob with the
    path below the mount and with that of each parent, so it covers what is inside.
    """
    unit = unit_path(path).rpartition("/")[2]
    for rule in rules:
        if rule.by == "systemd_unit":
            if unit and any(fnmatchcase(name, rule.pattern) for name in {unit, unescape(unit)}):
                return rule
        elif any(fnmatchcase(parent, rule.pattern) for parent in _with_parents(path)):
            return rule
    return None


def attach_roots(rules: Sequence[ServiceRule], *, cgroup2: Path) -> list[str]:
    """Where programs attach: paths below the cgroup2 mount, none inside another, all existing.

    Without rules and for systemd_unit rules that is system.slice, and any other top-level cgroup
    that has a matching unit now; for a cgroup glob the directory before its first wildcard. "" is
    the mount itself.
    """
    roots: set[str] = set()
    wanted = [rule for rule in rules if rule.trace]
    if not rules or any(rule.by == "systemd_unit" for rule in wanted):
        roots.add(DEFAULT_ROOT)
    for rule in wanted:
        if rule.by == "cgroup":
            glob = _GLOB.search(rule.pattern)
            roots.add(rule.pattern[: glob.start()].rpartition("/")[0] if glob else rule.pattern)
    by_unit = [rule for rule in wanted if rule.by == "systemd_unit"]
    if by_unit:
        for path in walk(cgroup2, [""]).values():
            if match(rules, path) in by_unit:
                roots.add(path.partition("/")[0])
    existing = {root for root in roots if (cgroup2 / root).is_dir()}
    return sorted(
        root
        for root in existing
        if not any(other != root and root.startswith(f"{other}/") for other in existing)
        and (root == "" or "" not in existing)
    )


def walk(cgroup2: Path, roots: Iterable[str]) -> dict[int, str]:
    """Every cgroup at and below `roots`: id -> path below the mount. Vanishing ones are skipped."""
    found: dict[int, str] = {}
    pending: list[str] = []
    for root in roots:
        try:
            found[os.stat(cgroup2 / root).st_ino] = root  # noqa: PTH116
        except FileNotFoundError:
            continue
        pending.append(root)
    while pending:
        path = pending.pop()
        try:
            with os.scandir(cgroup2 / path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        child = f"{path}/{entry.name}" if path else entry.name
                        found[entry.inode()] = child
                        pending.append(child)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return found


class Services:
    """Names services by cgroup id and remembers those which are gone for a while.

    A span can outlive its cgroup (the unit stopped), so names are kept for ten minutes.
    """

    def __init__(
        self,
        rules: Sequence[ServiceRule],
        *,
        cgroup2: Path,
        host: Mapping[str, str],
        resource_attributes: Mapping[str, str],
        roots: Sequence[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules = rules
        self._cgroup2 = cgroup2
        self._roots = attach_roots(rules, cgroup2=cgroup2) if roots is None else list(roots)
        self._base = {**host, **resource_attributes}
        self._clock = clock
        self._entries: dict[int, _Entry] = {}
        self._services: dict[tuple[str, str, bool], Service] = {}
        self._unknown: dict[int, float] = {}
        self._unknown_service = self._service("unknown_service", "", traced=True)
        self._next_scan = 0.0
        self.unresolved = 0  # lookups that found no cgroup
        self.refresh()

    @property
    def trace_by_default(self) -> bool:
        """Is a cgroup which appears later traced, until `traced` has named it?"""
        return not self._rules

    def lookup(self, cgroup_id: int) -> Service:
        """The service of a cgroup; one named `unknown_service` when the cgroup is not found."""
        entry = self._entries.get(cgroup_id)
        if entry is not None:
            return entry.service
        now = self._clock()
        if now >= self._next_scan and now >= self._unknown.get(cgroup_id, 0.0):
            self.refresh()
            entry = self._entries.get(cgroup_id)
            if entry is not None:
                return entry.service
            self._unknown[cgroup_id] = now + FORGET_UNKNOWN_SECONDS
        self.unresolved += 1
        return self._unknown_service

    def traced(self) -> dict[int, bool]:
        """Every existing cgroup at and below the attach roots: id -> is it traced?"""
        return {
            cgroup_id: entry.service.traced
            for cgroup_id, entry in self._entries.items()
            if entry.vanished is None
        }

    def traced_paths(self) -> list[Path]:
        """The directories of the cgroups that are traced now."""
        return [
            self._cgroup2 / entry.path
            for entry in self._entries.values()
            if entry.vanished is None and entry.service.traced
        ]

    def refresh(self) -> None:
        """Walk the cgroups again (about 10 us for each), at most 5 % of the time when unasked."""
        started = self._clock()
        found = walk(self._cgroup2, self._roots)
        for cgroup_id, path in found.items():
            entry = self._entries.get(cgroup_id)
            if entry is None or entry.path != path:
                self._entries[cgroup_id] = _Entry(path, self._name(path))
            elif entry.vanished is not None:
                entry.vanished = None
        gone = [cgroup_id for cgroup_id in self._entries if cgroup_id not in found]
        for cgroup_id in gone[:]:
            entry = self._entries[cgroup_id]
            if entry.vanished is None:
                entry.vanished = started
            elif started - entry.vanished > KEEP_VANISHED_SECONDS:
                del self._entries[cgroup_id]
                gone.remove(cgroup_id)
        for cgroup_id in gone[: max(0, len(gone) - KEEP_VANISHED_COUNT)]:
            del self._entries[cgroup_id]
        self._unknown = {key: at for key, at in self._unknown.items() if at > started}
        self._forget_services()
        now = self._clock()
        self._next_scan = now + max(0.05, 20 * (now - started))

    def _forget_services(self) -> None:
        if len(self._services) > 2 * len(self._entries) + 16:
            used = {id(entry.service) for entry in self._entries.values()}
            used.add(id(self._unknown_service))
            self._services = {k: s for k, s in self._services.items() if id(s) in used}

    def _name(self, path: str) -> Service:
        rule = match(self._rules, path)
        own = unit_path(path) or path
        unit = own.rpartition("/")[2]
        name = unescape(unit)
        for suffix in _UNIT_SUFFIXES:
            name = name.removesuffix(suffix)
        if rule is not None:
            return self._service(rule.name or name or "cgroup", own, traced=rule.trace)
        traced = not self._rules and (f"{path}/").startswith(f"{DEFAULT_ROOT}/")
        return self._service(name or "cgroup", own, traced=traced)

    def _service(self, name: str, path: str, *, traced: bool) -> Service:
        key = (name, path, traced)
        service = self._services.get(key)
        if service is None:
            unit = unit_path(path).rpartition("/")[2]
            attributes = dict(self._base)
            attributes["service.name"] = name
            identity = f"{attributes.get('host.id') or attributes.get('host.name')}/{unit or path}"
            attributes["service.instance.id"] = str(uuid.uuid5(_INSTANCE_NAMESPACE, identity))
            if unit:
                attributes["systemd.unit"] = unit
            if path:
                attributes["linux.cgroup.path"] = f"/{path}"
            service = Service(name, unit, path, traced, attributes)
            self._services[key] = service
        return service


def agent_service(*, host: Mapping[str, str], resource_attributes: Mapping[str, str]) -> Service:
    """The agent itself, as the source of its own metrics."""
    attributes = {**host, **resource_attributes, "service.name": "throughline"}
    identity = f"{host.get('host.id') or host.get('host.name')}/throughline.service"
    attributes["service.instance.id"] = str(uuid.uuid5(_INSTANCE_NAMESPACE, identity))
    return Service("throughline", "throughline.service", "", False, attributes)


def _with_parents(path: str) -> Iterable[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]
