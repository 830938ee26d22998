"""The attachments of the programs: links to cgroups and tracepoints, pinned so that they stay.

A link that an earlier run has pinned is kept, and its program is replaced in place: no packet
passes unobserved.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from throughline.bpf import libbpf
from throughline.features import pins
from throughline.features.objects import Objects, refuses
from throughline.services import cgroups

log = logging.getLogger(__name__)

_CGROUP_SECTIONS = {"cgroup_skb/ingress", "cgroup_skb/egress", "sockops"}


@dataclass(frozen=True, slots=True)
class Attached:
    """One attached program, for status and doctor."""

    name: str
    type: str
    where: str
    id: int  # the kernel's, of the program
    pin: str | None = None  # the name of its link's pin, if it has one

    def as_json(self) -> dict[str, Any]:
        """One entry of "attached" in `status --json`."""
        return {"name": self.name, "type": self.type, "where": self.where, "id": self.id}


@dataclass(frozen=True, slots=True)
class Reattached:
    """What became of cgroups that have come since: names of the new ones, errors of others."""

    fresh: tuple[str, ...]
    failures: tuple[OSError, ...]


class Attachments:
    """The attached programs of one run. `roots` are paths below the cgroup2 mount."""

    def __init__(self, objects: Objects, *, cgroup2: Path, roots: Sequence[str]) -> None:
        self._objects = objects
        self._cgroup2 = cgroup2
        self._roots = list(roots)
        self._inodes: dict[str, int] = {}  # of the roots, when they were attached to
        self._links: list[libbpf.Link] = []
        self._attached: list[Attached] = []

    def __iter__(self) -> Iterator[Attached]:
        return iter(self._attached)

    @property
    def cgroups(self) -> frozenset[int]:
        """The ids of the cgroups that programs are attached to."""
        return frozenset(self._inodes.values())

    @property
    def directory(self) -> Path:
        """Where links are pinned. Known once the first object is loaded."""
        return self._objects.pins / "links"

    def close(self) -> None:
        """Frees what this process holds. Pinned programs go on."""
        for link in self._links:
            link.destroy()
        self._links.clear()

    def attach(self, program: libbpf.Program, *, pin: bool) -> None:
        """Attaches a program where its section says: to every root, or to a tracepoint."""
        if refuses(f"attach:{program.name}"):
            raise OSError(errno.EPERM, f"attach {program.name}: {os.strerror(errno.EPERM)}")
        self.directory.mkdir(mode=0o700, exist_ok=True)
        if program.section in _CGROUP_SECTIONS:
            for root in self._roots:
                try:
                    self._attach_cgroup(program, root)
                except cgroups.ClosedError as error:  # `reattach` tries again
                    log.warning("not attached: %s", error.strerror)
            self._unpin_other_roots(program.name)
            return
        link = program.attach()
        self._links.append(link)
        if pin:
            path = self.directory / program.name
            # both run for a moment: to see an event twice does no harm, to miss one would
            path.unlink(missing_ok=True)
            link.pin(path)
        where = program.section.partition("/")[2]
        self.note(program, where, pin=program.name if pin else None)

    def note(self, program: libbpf.Program, where: str, *, pin: str | None = None) -> None:
        """Remembers for status where a program is attached."""
        kind = program.section.partition("/")[0]
        number = libbpf.object_id(program.fd)
        self._attached.append(Attached(program.name, kind, where, number, pin))

    def drop(self, name: str) -> None:
        """Detaches a program from wherever this run has attached it."""
        self._destroy(name)
        self._attached = [a for a in self._attached if a.name != name]

    def reattach(self, roots: Sequence[str], programs: Iterable[libbpf.Program]) -> Reattached:
        """Attaches programs to roots that have come since, or were removed and made again.

        One that cannot be attached to does not hold up the others.
        """
        fresh: list[str] = []
        failures: list[OSError] = []
        of_cgroups = [program for program in programs if program.section in _CGROUP_SECTIONS]
        for root in roots:
            if cgroups.inode(self._cgroup2, root) in (0, self._inodes.get(root)):
                continue
            try:
                for program in of_cgroups:
                    self._reattach(program, root)
            except OSError as error:  # it vanished again, or is closed, or the kernel refuses
                failures.append(error)
                continue
            fresh.append(root)
            if root not in self._roots:
                self._roots.append(root)
        return Reattached(tuple(fresh), tuple(failures))

    def missing(self) -> list[str]:
        """Names of links that somebody detached, or whose pin has gone.

        A link that went together with its cgroup is not missing: there is nothing to trace.
        """
        gone = [
            link.name
            for link in self._links
            if "@" in link.name and not libbpf.link_cgroup(link.fd) and self._is_there(link.name)
        ]
        return sorted({*self._without_pin(), *gone})

    def _reattach(self, program: libbpf.Program, root: str) -> None:
        # what was attached to the earlier cgroup of this name went with it
        self._destroy(pins.of_cgroup(program.name, root))
        place = (program.name, f"/{root}")
        self._attached = [a for a in self._attached if (a.name, a.where) != place]
        self._attach_cgroup(program, root)

    def _attach_cgroup(self, program: libbpf.Program, root: str) -> None:
        pin = self.directory / pins.of_cgroup(program.name, root)
        link: libbpf.Link | None = None
        if pin.exists():
            try:
                link = libbpf.Link.open(pin)
                link.update(program.fd)
            except OSError as error:
                # the cgroup was removed and made again, or another kind of link stands there
                log.info("%s is attached anew: %s", program.name, error)
                if link is not None:
                    link.destroy()
                link = None
                pin.unlink(missing_ok=True)
        self._inodes.pop(root, None)
        with cgroups.opened(self._cgroup2, root) as directory:
            if link is None:
                link = program.attach_cgroup(directory)
                link.name = pin.name
                link.pin(pin)
            self._inodes[root] = os.fstat(directory).st_ino
        self._links.append(link)
        self.note(program, f"/{root}", pin=pin.name)

    def _unpin_other_roots(self, name: str) -> None:
        """Takes away a program's links to cgroups that an earlier run attached to."""
        wanted = {pins.of_cgroup(name, root) for root in self._roots}
        for pin in self.directory.glob(f"{name}@*"):
            if pin.name not in wanted:
                pin.unlink()

    def _destroy(self, name: str) -> None:
        """Ends the links of a program, or one link by its own name."""
        kept = []
        for link in self._links:
            if link.name == name or link.name.startswith(f"{name}@"):
                link.destroy()
            else:
                kept.append(link)
        self._links = kept

    def _is_there(self, link_name: str) -> bool:
        return any(
            link_name.endswith(pins.of_cgroup("", root)) and cgroups.inode(self._cgroup2, root)
            for root in self._roots
        )

    def _without_pin(self) -> list[str]:
        expected = {attached.pin for attached in self._attached if attached.pin}
        try:
            present = {pin.name for pin in self.directory.iterdir()}
        except OSError:
            return sorted(expected)
        return sorted(expected - present)
