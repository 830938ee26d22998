"""The service behind a cgroup: cgroup id, systemd unit, service and its resource.

The kernel's id of a cgroup is the inode number of the cgroup's directory in the cgroup2 mount. So
one walk over the directories names every service, and no process has to be read.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from throughline.bpf.abi import CgroupFlags
from throughline.config.model import ServiceRule
from throughline.services import cgroups, containers, environment
from throughline.services.rules import DEFAULT_ROOT, attach_roots, match
from throughline.services.units import UNIT_SUFFIXES, unescape, unit_name, unit_path
from throughline.steps import Turns, finish
from throughline.text import printable, utf8

log = logging.getLogger(__name__)

# The name space that the OpenTelemetry semantic conventions set for service.instance.id as UUIDv5.
_INSTANCE_NAMESPACE = uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")

_FLAGS = {
    None: int(CgroupFlags.CGROUP_TRACED),
    "proven": CgroupFlags.CGROUP_TRACED | CgroupFlags.CGROUP_PROVEN,
    "likely": CgroupFlags.CGROUP_TRACED | CgroupFlags.CGROUP_LIKELY,
}
_EACH_TURN = 16  # names, about 1 ms
_NAME_WALKS = 3  # a cgroup is there before the process that says how the service is called
KEEP_VANISHED_SECONDS = 600.0
KEEP_VANISHED_COUNT = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """A service as a tracing backend sees it. There is one object for each service."""

    name: str
    unit: str  # its name in systemctl, "" outside of any unit
    cgroup: str  # path of the unit's cgroup below the cgroup2 mount, "" when unknown
    traced: bool
    attributes: Mapping[str, str]  # the whole resource
    parents: str | None = None  # as in its rule


@dataclass(slots=True)
class _Entry:
    path: str
    service: Service
    vanished: float | None = None
    walks: int = _NAME_WALKS  # on which its processes are asked for its name again


class Services:
    """Finds services by cgroup id. Names are kept for ten minutes after their cgroup has gone.

    A span can end after its cgroup, for example when the unit stops.
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
        proc: Path = Path("/proc"),
    ) -> None:
        self._rules = rules
        self._proc = proc
        self._cgroup2 = cgroup2
        self._roots = attach_roots(rules, cgroup2=cgroup2) if roots is None else list(roots)
        self._base = {**host, **resource_attributes}
        self._clock = clock
        self._entries: dict[int, _Entry] = {}
        self._services: dict[tuple[str, str, str, bool, str | None], Service] = {}
        self._unreadable: set[str] = set()
        self.unknown = self._service("unknown_service", "", traced=True)
        self._next_unasked = 0.0
        self.unresolved = 0  # lookups of a cgroup that is not known
        self.unreadable = 0  # cgroups whose directory could not be read
        self.too_many = 0  # walks that stopped at MAX_CGROUPS
        self.refresh()

    @property
    def trace_by_default(self) -> bool:
        """Returns whether a new cgroup is traced before `traced` lists it."""
        return not self._rules

    def find(self, cgroup_id: int) -> Service | None:
        """The service of a cgroup; None when no recent walk has found the cgroup."""
        entry = self._entries.get(cgroup_id)
        return None if entry is None else entry.service

    def lookup(self, cgroup_id: int) -> Service:
        """The service of a cgroup. One that is not known is counted and is `unknown`."""
        found = self.find(cgroup_id)
        if found is None:
            self.unresolved += 1
            return self.unknown
        return found

    def is_there(self, cgroup_id: int) -> bool:
        """Returns whether the last walk found the cgroup."""
        entry = self._entries.get(cgroup_id)
        return entry is not None and entry.vanished is None

    def may_refresh(self) -> bool:
        """Returns whether a walk may begin early. Early walks take at most 5 % of the time."""
        return self._clock() >= self._next_unasked

    def follow(self, roots: Sequence[str]) -> None:
        """Later walks begin at other roots. Known services stay known."""
        self._roots = list(roots)

    def traced(self) -> dict[int, bool]:
        """Whether each existing cgroup at and below the attach roots is traced, by id."""
        return {
            cgroup_id: entry.service.traced
            for cgroup_id, entry in self._entries.items()
            if entry.vanished is None
        }

    def listed(self) -> dict[int, int]:
        """What the programs are told of each existing cgroup at and below the attach roots."""
        return {
            cgroup_id: _FLAGS[entry.service.parents] if entry.service.traced else 0
            for cgroup_id, entry in self._entries.items()
            if entry.vanished is None
        }

    def traced_paths(self) -> list[str]:
        """The directories of the traced cgroups."""
        return [
            f"{self._cgroup2}/{entry.path}"
            for entry in self._entries.values()
            if entry.vanished is None and entry.service.traced
        ]

    def refresh(self) -> None:
        """Walks the cgroups again, without a break; a cgroup takes about 20 us."""
        finish(self.refreshing())

    def refreshing(self) -> Turns[None]:
        """Walks the cgroups again, in turns."""
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
                service = self._named_inside(path, self._name(path))
                self._entries[cgroup_id] = _Entry(path, service)
            elif entry.vanished is not None:
                entry.vanished = None
            elif entry.walks:
                entry.walks -= 1
                entry.service = self._named_inside(path, entry.service)
            if count % _EACH_TURN == 0:
                yield
        self._forget(walked.paths.keys(), self._clock())

    def _count(self, walked: cgroups.Walked) -> None:
        """Counts the cgroups that a walk could not read; each is counted once while that lasts."""
        fresh = walked.unreadable - self._unreadable
        if fresh and not self.unreadable:
            log.warning("/%s cannot be read: services in it have no name", min(fresh))
        if walked.cut and not self.too_many:
            log.warning(
                "there are more than %d cgroups: the rest has no names", cgroups.MAX_CGROUPS
            )
        self.unreadable += len(fresh)
        self.too_many += walked.cut
        self._unreadable = walked.unreadable

    def _forget(self, found: Collection[int], now: float) -> None:
        """Notes which cgroups have vanished, and forgets those that vanished long ago."""
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

    def _named_inside(self, path: str, found: Service) -> Service:
        """The service of a cgroup, by the name that its process or container has.

        `found`: what it is where they have none, where nothing is traced, and where nothing runs.
        """
        if not found.traced:
            return found
        pid = cgroups.first_process(self._cgroup2 / path, self._cgroup2 / path / "container")
        if not pid:
            return found
        name = environment.service_name(pid, proc=self._proc)
        container = containers.podman_name(path, pid, proc=self._proc)
        if not name and not container:
            return found
        return self._name(path, name=name, container=container)

    def _name(self, path: str, *, name: str = "", container: str = "") -> Service:
        """The service of a cgroup. `name`, `container`: as its process and its engine call it."""
        rule = match(self._rules, path)
        own = unit_path(path) or path
        name = utf8(name or container) or _unit(own) or "cgroup"
        if rule is not None:
            name, traced = rule.name or name, rule.trace
            return self._service(name, own, container, traced=traced, parents=rule.parents)
        traced = not self._rules and (f"{path}/").startswith(f"{DEFAULT_ROOT}/")
        return self._service(name, own, container, traced=traced)

    def _service(
        self,
        name: str,
        path: str,
        container: str = "",
        *,
        traced: bool,
        parents: str | None = None,
    ) -> Service:
        key = (name, path, container, traced, parents)
        service = self._services.get(key)
        if service is None:
            unit = unit_name(path)
            attributes = {key: utf8(value) for key, value in self._base.items()}
            attributes["service.name"] = name
            host = attributes.get("host.id") or attributes.get("host.name")
            identity = f"{host}/{unit or path}"
            if utf8(identity) != identity:  # two names that differ in other bytes are two instances
                identity = printable(identity)
            attributes["service.instance.id"] = str(uuid.uuid5(_INSTANCE_NAMESPACE, identity))
            if unit:
                attributes["systemd.unit"] = utf8(unit)
            if path:
                attributes["linux.cgroup.path"] = f"/{utf8(path)}"
            if container_id := containers.container_id(path):
                attributes["container.id"] = container_id
            if container:
                attributes["container.name"] = utf8(container)
            service = Service(name, utf8(unit), utf8(path), traced, attributes, parents)
            self._services[key] = service
        return service


def _unit(path: str) -> str:
    name = utf8(unescape(path.rpartition("/")[2]))
    for suffix in UNIT_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def agent_service(*, host: Mapping[str, str], resource_attributes: Mapping[str, str]) -> Service:
    """The agent itself, which is the source of its own metrics."""
    attributes = {**host, **resource_attributes, "service.name": "throughline"}
    identity = f"{host.get('host.id') or host.get('host.name')}/throughline.service"
    attributes["service.instance.id"] = str(uuid.uuid5(_INSTANCE_NAMESPACE, identity))
    return Service("throughline", "throughline.service", "", False, attributes)
