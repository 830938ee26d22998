"""A file that is probed: what is known of it, and whether it is still what it was."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from throughline.host.lease import Lease
from throughline.probes import uprobes

Identity = tuple[int, ...]
_CODE_BYTES = 32  # at a site: the longest instruction has 15


@dataclass(frozen=True, slots=True)
class Attached:
    """One file that is probed, for status."""

    path: str  # as the first process that was seen names it
    sites: tuple[uprobes.Site, ...]
    processes: int  # traced ones that map it now
    refused: str  # why nothing is attached, else ""

    def as_json(self, sites: Sequence[uprobes.Site]) -> dict[str, Any]:
        """With these sites of it."""
        return {
            "path": self.path,
            "programs": [site.program for site in sites],
            "dear": _dear(sites),
            "processes": self.processes,
            "refused": self.refused,
        }


@dataclass(slots=True)
class ProbedFile:
    path: str
    fd: int
    stamp: tuple[int, ...]  # see `stamp`
    sites: tuple[uprobes.Site, ...]
    code: tuple[bytes, ...]  # what stood at the sites when they were found
    foreign: bool  # only to be reached in another mount namespace
    lease: Lease | None
    # device and inode as /proc/PID/maps says them
    devices: set[bytes] = field(default_factory=set)
    links: list[uprobes.Link] = field(default_factory=list)
    processes: int = 0
    refused: str = ""
    retry_at: float = 0.0
    unused_since: float | None = None


def _dear(sites: Iterable[uprobes.Site]) -> bool:
    """Does what is done for each request cost a single-stepped instruction?"""
    each = ("tl_ssl_read", "tl_ssl_write", "tl_go_")  # not once in a connection
    return any(site.dear for site in sites if site.program.startswith(each))


def stamp(status: os.stat_result) -> tuple[int, ...]:
    """Differs when a file has been written to. Its owner can set mtime back, but not ctime."""
    return status.st_mtime_ns, status.st_size, status.st_ctime_ns


def is_touched(file: ProbedFile, status: os.stat_result) -> bool:
    """Was a file only renamed, linked, removed, or given another mode? Its probes stay then.

    ctime tells that something has changed, not what. Probes are safe while the instructions under
    them are those for which they were made.
    """
    if stamp(status)[:2] != file.stamp[:2] or code_at(file.fd, file.sites) != file.code:
        return False
    file.stamp = stamp(status)
    return True


def code_at(fd: int, sites: Iterable[uprobes.Site]) -> tuple[bytes, ...]:
    return tuple(os.pread(fd, _CODE_BYTES, site.offset) for site in sites)


def version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, *stamp(status)


def destroy(links: Sequence[uprobes.Link]) -> None:
    """All at once: the kernel takes 0.1 s for one, or for all."""
    if links:
        with ThreadPoolExecutor(len(links), thread_name_prefix="detach") as pool:
            list(pool.map(lambda link: link.destroy(), links))


def release(links: Sequence[uprobes.Link], fd: int) -> None:
    try:
        destroy(links)
    finally:
        os.close(fd)
