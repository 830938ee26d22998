"""Name the service behind a cgroup: cgroup id -> systemd unit -> service and its resource.

A cgroup id in the kernel is the inode number of the cgroup's directory in the cgroup2 mount, so
one walk over the directories names every service; no process is ever looked at. Names of cgroups
are chosen by whoever owns the parent: any bytes but a slash, a line feed and zero.
"""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from throughline.config.model import ServiceRule
from throughline.services import cgroups
from throughline.steps import Turns, finish
from throughline.text import printable, utf8

log = logging.getLogger(__name__)

# The name space that the OpenTelemetry semantic conventions set for service.instance.id as UUIDv5.
_INSTANCE_NAMESPACE = uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")
_UNIT_SUFFIXES = (".service", ".scope")
_ESCAPED = re.compile(rb"\\x([0-9a-fA-F]{2})")
_GLOB = re.compile(r"[*?\[]")

_EACH_TURN = 64  # names, about 1 ms
DEFAULT_ROOT = "system.slice"
KEEP_VANISHED_SECONDS = 600.0
KEEP_VANISHED_COUNT = 4096


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
    r"""A unit name with `\x2d` and the like resolved, see systemd-escape(1).

    The escapes stand for bytes of UTF-8. A name that would not be printable stays as it is.
    """
    if "\\" not in name:
        return name
    data = _ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), os.fsencode(name))
    found = os.fsdecode(data)
    return found if found.isprintable() else name


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
    """Where programs attach: paths below the cgroup2 mount, none inside another.

    Each exists, and this user may open it: its owner can forbid that at any time.

    Without rules and for systemd_unit rules that is system.slice, and any other top-level cgroup
    that has a matching unit now; for a cgroup glob the directory before its first wildcard. "" is
    the mount itself.
    """
    return finish(find_roots(rules, cgroup2=cgroup2))


def find_roots(rules: Sequence[ServiceRule], *, cgroup2: Path) -> Turns[list[str]]:
    """The same in turns."""
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
        walked = yield from cgroups.walk(cgroup2, [""])
        for count, path in enumerate(walked.paths.values(), 1):
            if match(rules, path) in by_unit:
                roots.add(path.partition("/")[0])
            if count % _EACH_TURN == 0:
                yield
    existing = {root for root in roots if cgroups.is_open(cgroup2 / root)}
    return sorted(
        root
        for root in existing
        if not any(other != root and root.startswith(f"{other}/") for other in existing)
        and (root == "" or "" not in existing)
    )


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
        self._unreadable: set[str] = set()
        self.unknown = self._service("unknown_service", "", traced=True)
        self._next_unasked = 0.0
        self.unresolved = 0  # lookups that found no cgroup
        self.unreadable = 0  # cgroups that could not be looked into
        self.too_many = 0  # walks that found more cgroups than are followed
        self.refresh()

    @property
    def trace_by_default(self) -> bool:
        """Is a cgroup which appears later traced, until `traced` has named it?"""
        return not self._rules

    def find(self, cgroup_id: int) -> Service | None:
        """The service of a cgroup; None when no walk has met the cgroup yet, or lately."""
        entry = self._entries.get(cgroup_id)
        return None if entry is None else entry.service

    def lookup(self, cgroup_id: int) -> Service:
        """The service of a cgroup; `unknown`, and counted, when it is not known."""
        found = self.find(cgroup_id)
        if found is None:
            self.unresolved += 1
            return self.unknown
        return found

    def is_there(self, cgroup_id: int) -> bool:
        """Did the last walk meet the cgroup?"""
        entry = self._entries.get(cgroup_id)
        return entry is not None and entry.vanished is None

    def may_refresh(self) -> bool:
        """May a walk begin ahead of its turn? Such walks take at most 5 % of the time."""
        return self._clock() >= self._next_unasked

    def follow(self, roots: Sequence[str]) -> None:
        """Walks over other roots from now on; what is known stays known."""
        self._roots = list(roots)

    def traced(self) -> dict[int, bool]:
        """Every existing cgroup at and below the attach roots: id -> is it traced?"""
        return {
            cgroup_id: entry.service.traced
            for cgroup_id, entry in self._entries.items()
            if entry.vanished is None
        }

    def traced_paths(self) -> list[str]:
        """The directories of the cgroups that are traced now."""
        return [
            f"{self._cgroup2}/{entry.path}"
            for entry in self._entries.values()
            if entry.vanished is None and entry.service.traced
        ]

    def refresh(self) -> None:
        """Walks the cgroups again, at once: about 20 us for each."""
        finish(self.refreshing())

    def refreshing(self) -> Turns[None]:
        """The same in turns."""
        began = self._clock()
        steps = 0.0
        for _ in self._refreshing():
            steps += self._clock() - began
            yield
            began = self._clock()
        now = self._clock()
        self._next_unasked = now + max(0.05, 20 * (steps + now - began))

    def _refreshing(self) -> Turns[None]:
        walked = yield from cgroups.walk(self._cgroup2, self._roots)
        self._count(walked)
        for count, (cgroup_id, path) in enumerate(walked.paths.items(), 1):
            entry = self._entries.get(cgroup_id)
            if entry is None or entry.path != path:
                self._entries[cgroup_id] = _Entry(path, self._name(path))
            elif entry.vanished is not None:
                entry.vanished = None
            if count % _EACH_TURN == 0:
                yield
        self._forget(walked.paths.keys(), self._clock())

    def _count(self, walked: cgroups.Walked) -> None:
        """Counts what a walk could not read, each cgroup once while that lasts."""
        fresh = walked.unreadable - self._unreadable
        if fresh and not self.unreadable:
            log.warning("/%s cannot be read: what is in it is not named", min(fresh))
        if walked.cut and not self.too_many:
            log.warning("there are more than %d cgroups: others are not named", cgroups.MAX_CGROUPS)
        self.unreadable += len(fresh)
        self.too_many += walked.cut
        self._unreadable = walked.unreadable

    def _forget(self, found: Collection[int], now: float) -> None:
        """Notes which cgroups have vanished, and forgets those that did so long ago."""
        gone = [cgroup_id for cgroup_id in self._entries if cgroup_id not in found]
        kept = []
        for cgroup_id in gone:
            entry = self._entries[cgroup_id]
            if entry.vanished is None:
                entry.vanished = now
            if now - entry.vanished > KEEP_VANISHED_SECONDS:
                del self._entries[cgroup_id]
            else:
                kept.append(cgroup_id)
        for cgroup_id in kept[: max(0, len(kept) - KEEP_VANISHED_COUNT)]:
            del self._entries[cgroup_id]
        self._forget_services()

    def _forget_services(self) -> None:
        if len(self._services) > 2 * len(self._entries) + 16:
            used = {id(entry.service) for entry in self._entries.values()}
            used.add(id(self.unknown))
            self._services = {k: s for k, s in self._services.items() if id(s) in used}

    def _name(self, path: str) -> Service:
        rule = match(self._rules, path)
        own = unit_path(path) or path
        unit = own.rpartition("/")[2]
        name = utf8(unescape(unit))
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
            attributes = {key: utf8(value) for key, value in self._base.items()}
            attributes["service.name"] = name
            host = attributes.get("host.id") or attributes.get("host.name")
            identity = f"{host}/{unit or path}"
            if utf8(identity) != identity:  # names that differ in other bytes are two instances
                identity = printable(identity)
            attributes["service.instance.id"] = str(uuid.uuid5(_INSTANCE_NAMESPACE, identity))
            if unit:
                attributes["systemd.unit"] = utf8(unit)
            if path:
                attributes["linux.cgroup.path"] = f"/{utf8(path)}"
            service = Service(name, utf8(unit), utf8(path), traced, attributes)
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
