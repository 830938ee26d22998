"""A file that is probed: what is known of it, and whether it has been changed since."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from throughline.host.lease import Lease
from throughline.probes import uprobes
from throughline.probes.provider import Probed, Process
from throughline.probes.site import Site

Identity = tuple[int, ...]  # see uprobes.identity
Sites = tuple[Site, ...]
_CODE_BYTES = 32  # kept of each site; the longest instruction of x86 has 15


@dataclass(frozen=True, slots=True)
class Attached:
    """One file that is probed, for status."""

    path: str  # the name that the first process had for the file
    file: int  # the descriptor
    sites: Mapping[str, Sites]  # name of a provider -> its sites
    mapped_by: tuple[Process, ...]  # traced ones, now
    refused: str  # why nothing is attached, else ""

    @property
    def processes(self) -> int:
        """How many traced processes map the file now."""
        return len(self.mapped_by)

    def probed(self, provider: str) -> Probed:
        """The file as its provider knows it."""
        return Probed(self.file, self.sites[provider], self.mapped_by, self.refused)

    def as_json(self, provider: str) -> dict[str, Any]:
        """For the sites of one provider."""
        sites = self.sites[provider]
        return {
            "path": self.path,
            "programs": [site.program for site in sites],
            # What a request costs counts, not what happens once in a connection.
            "single_stepped": any(site.single_stepped and not site.rare for site in sites),
            "processes": self.processes,
            "refused": self.refused,
        }


@dataclass(slots=True)
class ProbedFile:
    """A file of a provider, held open."""

    path: str
    fd: int
    stamp: tuple[int, ...]  # see `stamp`
    sites: Mapping[str, Sites]  # name of a provider -> its sites
    code: tuple[bytes, ...]  # what stood at the sites when they were found
    foreign: bool  # can be reached in another mount namespace only
    lease: Lease | None
    # device and inode as /proc/PID/maps has them
    devices: set[bytes] = field(default_factory=set)
    links: list[uprobes.Link] = field(default_factory=list)
    processes: tuple[Process, ...] = ()  # that map it now
    refused: str = ""
    retry_at: float = 0.0
    unused_since: float | None = None

    @property
    def all_sites(self) -> Sites:
        """The sites of all providers."""
        return joined(self.sites)

    def is_changed(self, status: os.stat_result) -> bool:
        """Has the content of the file changed since its sites were found?

        ctime also changes when a file is renamed, linked, removed or given another mode. The probes
        stay then: they are safe while the instructions under them are the same.
        """
        if stamp(status) == self.stamp:
            return False
        if stamp(status)[:2] != self.stamp[:2] or code_at(self.fd, self.all_sites) != self.code:
            return True
        self.stamp = stamp(status)
        return False


def joined(sites: Mapping[str, Sites]) -> Sites:
    """The sites of all providers."""
    return tuple(site for each in sites.values() for site in each)


def stamp(status: os.stat_result) -> tuple[int, ...]:
    """Differs after a file was written to. Its owner can set mtime back, but not ctime."""
    return status.st_mtime_ns, status.st_size, status.st_ctime_ns


def version(status: os.stat_result) -> tuple[int, ...]:
    """Differs for every file, and for every content of a file."""
    return status.st_dev, status.st_ino, *stamp(status)


def code_at(fd: int, sites: Sequence[Site]) -> tuple[bytes, ...]:
    """The instructions at the sites of an open file."""
    return tuple(os.pread(fd, _CODE_BYTES, site.offset) for site in sites)
