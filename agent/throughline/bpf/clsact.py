"""Filters of clsact qdiscs, for kernels without tcx (before 6.6). Only this file knows pyroute2.

It is imported where it is needed only, since pyroute2 takes 24 MB and a third of a second.

A filter of ours is known by its name and its handle, which follows from the agent's bpffs: another
agent's, or a trial's, is left alone. That a qdisc was made by us is remembered in the bpffs, so
that it goes with us also after a crash, and one that was there before stays.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

# include/uapi/linux/pkt_sched.h: TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_…)
_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
_GONE = {errno.ENODEV, errno.ENOENT, errno.EINVAL}


class Filters:
    """Egress filters of one program, at one priority, on any interfaces of this namespace.

    `bpffs` is the agent's. What is remembered there is not of one ABI: the next release replaces
    the filter in place, whatever its own is.
    """

    def __init__(self, *, name: str, bpffs: Path, priority: int) -> None:
        self._name = name
        self._directory = bpffs / "clsact"
        self._priority = priority
        self._handle = zlib.crc32(os.fsencode(bpffs)) & 0x7FFFFFFF or 1
        self._netlink = IPRoute(groups=0)

    def close(self) -> None:
        """Closes the socket; filters stay."""
        self._netlink.close()

    def put(self, index: int, program_fd: int) -> None:
        """Adds our filter to an interface's egress, or replaces the one of an earlier run.

        Raises OSError: ENODEV when the interface has gone, EEXIST or EINVAL when a filter of
        another kind has the priority.
        """
        marker = self._directory / f"{index}-{self._priority}"
        created = self._created(index)
        if self._call("add", "clsact", index=index, ignore={errno.EEXIST}):
            created = True
        # before the filter: what is remembered and not there does no harm
        marker.mkdir(mode=0o700, parents=True, exist_ok=True)
        if created:
            (marker / "created").mkdir(exist_ok=True)
        try:
            self._call(
                "replace-filter",
                "bpf",
                index=index,
                handle=self._handle,
                parent=_EGRESS,
                prio=self._priority,
                fd=program_fd,
                name=self._name,
                direct_action=True,
            )
        except OSError:
            self.take(index)
            raise
        for priority, other in self._markers(index):
            if priority != self._priority:
                self._delete(index, priority)
                _forget(other)

    def take(self, index: int) -> None:
        """Removes our filter from an interface, and the qdisc if we made it and it is empty."""
        created = self._created(index)
        for priority, marker in self._markers(index):
            self._delete(index, priority)
            _forget(marker)
        # between the look and the removal somebody could add a filter: the kernel has no
        # operation that does both
        if created and not [*self._filters(index, _INGRESS), *self._filters(index, _EGRESS)]:
            self._call("del", "clsact", index=index, ignore=_GONE)

    def remembered(self) -> set[int]:
        """Interfaces on which this run or an earlier one has put the filter."""
        return {int(marker.name.partition("-")[0]) for marker in self._directory.glob("*-*")}

    def has(self, index: int) -> bool:
        """Is our filter still there?"""
        return any(
            found["handle"] == self._handle and found["info"] >> 16 == self._priority
            for found in self._filters(index, _EGRESS)
        )

    def _created(self, index: int) -> bool:
        return any(self._directory.glob(f"{index}-*/created"))

    def _markers(self, index: int) -> list[tuple[int, Path]]:
        found = self._directory.glob(f"{index}-*")
        return [(int(marker.name.partition("-")[2]), marker) for marker in sorted(found)]

    def _delete(self, index: int, priority: int) -> None:
        for found in list(self._filters(index, _EGRESS)):
            options = found.get_attr("TCA_OPTIONS")
            if (found["handle"], found["info"] >> 16) == (self._handle, priority) and (
                options is not None and options.get_attr("TCA_BPF_NAME") == self._name
            ):
                self._call(
                    "del-filter",
                    "bpf",
                    index=index,
                    handle=self._handle,
                    parent=_EGRESS,
                    prio=priority,
                    ignore=_GONE,
                )

    def _filters(self, index: int, parent: int) -> Iterator[Any]:
        """The filters of a hook; each priority has a head without handle, which is left out."""
        try:
            for found in self._netlink.get_filters(index=index, parent=parent):
                if found["handle"]:
                    yield found
        except NetlinkError as error:
            if error.code not in _GONE:
                raise _os_error(error, "dump of filters") from error

    def _call(
        self, command: str, kind: str, *, ignore: set[int] | None = None, **options: Any
    ) -> bool:
        """One request; False when it failed with one of the codes in `ignore`."""
        try:
            self._netlink.tc(command, kind, **options)
        except NetlinkError as error:
            if ignore and error.code in ignore:
                return False
            raise _os_error(error, f"tc {command} {kind}") from error
        return True


def _os_error(error: NetlinkError, call: str) -> OSError:
    return OSError(error.code, f"{call}: {os.strerror(error.code)}")


def _forget(marker: Path) -> None:
    for directory in (marker / "created", marker):
        if directory.is_dir():
            directory.rmdir()


def remove_all(bpffs: Path, *, name: str) -> None:
    """Removes every filter that an agent with this bpffs has put, whatever its priority."""
    filters = Filters(name=name, bpffs=bpffs, priority=0)
    try:
        for index in filters.remembered():
            filters.take(index)
    finally:
        filters.close()
    (bpffs / "clsact").rmdir()
