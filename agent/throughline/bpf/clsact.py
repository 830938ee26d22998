"""Filters of clsact qdiscs, for kernels without tcx (before 6.6), by the `bpf_tc_*` of libbpf.

A filter of ours is known by its name and its handle. The handle follows from the path of the
agent's bpffs, so the filter of another agent, or of a trial, is left alone. The bpffs remembers
where a filter is and whether the agent made the qdisc: a later run removes that qdisc too after a
crash, and a qdisc that was there before the agent stays.
"""

from __future__ import annotations

import ctypes
import errno
import os
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from throughline.bpf.prototypes import TcHook, TcOptions, check, library
from throughline.host import rtnetlink

_EGRESS, _BOTH = 2, 3  # enum bpf_tc_attach_point: BPF_TC_EGRESS, BPF_TC_INGRESS | BPF_TC_EGRESS
_REPLACE = 1  # BPF_TC_F_REPLACE
_GONE = {errno.ENODEV, errno.ENOENT, errno.EINVAL}


class Filters:
    """Egress filters of one program, at one priority, on any interfaces of this namespace.

    `bpffs` is the agent's. What it remembers does not depend on the version of the ABI: the next
    release replaces the filter in place.
    """

    def __init__(self, *, name: str, bpffs: Path, priority: int) -> None:
        self._name = name
        self._directory = bpffs / "clsact"
        self._priority = priority
        self._handle = zlib.crc32(os.fsencode(bpffs)) & 0x7FFFFFFF or 1

    def put(self, index: int, program_fd: int) -> None:
        """Adds our filter to an interface's egress, or replaces the one of an earlier run.

        Raises OSError: ENODEV when the interface has gone, EEXIST or EINVAL when a filter of
        another kind has the priority, EBUSY when the interface has the older qdisc `ingress`.
        """
        marker = self._directory / f"{index}-{self._priority}"
        created = self._created(index)
        if _create(index):
            created = True
        elif "ingress" in rtnetlink.qdiscs(index):
            # That qdisc has no egress: the kernel would run the filter on ingress.
            raise OSError(errno.EBUSY, "the qdisc `ingress` is in the place of clsact")
        # The marker comes before the filter: a marker without a filter does no harm.
        marker.mkdir(mode=0o700, parents=True, exist_ok=True)
        if created:
            (marker / "created").mkdir(exist_ok=True)
        try:
            self._replace(index, program_fd)
        except OSError:
            self.take(index)
            raise
        for priority, other in self._markers(index):
            if priority != self._priority:
                self._detach(index, priority)
                _forget(other)

    def take(self, index: int) -> None:
        """Removes our filter from an interface, and the qdisc if we made it and it is empty."""
        created = self._created(index)
        for priority, marker in self._markers(index):
            self._detach(index, priority)
            _forget(marker)
        # Another program could add a filter between the look and the removal: the kernel has no
        # operation that does both.
        if created and not _has_filters(index):
            _check(library().bpf_tc_hook_destroy(_hook(index, _BOTH)), "bpf_tc_hook_destroy", _GONE)

    def remembered(self) -> set[int]:
        """The interfaces on which this run or an earlier one has put the filter."""
        return {int(marker.name.partition("-")[0]) for marker in self._directory.glob("*-*")}

    def has(self, index: int) -> bool:
        """Returns whether our filter is on the interface."""
        return self._is_on(index, self._priority)

    def _is_on(self, index: int, priority: int) -> bool:
        # libbpf names a filter PROGRAM:[ID]
        return any(
            (found.handle, found.priority) == (self._handle, priority)
            and found.name.partition(":")[0] == self._name
            for found in rtnetlink.filters(index, rtnetlink.EGRESS)
        )

    def _replace(self, index: int, program_fd: int) -> None:
        options = self._options(self._priority, prog_fd=program_fd, flags=_REPLACE)
        try:
            _check(library().bpf_tc_attach(_hook(index, _EGRESS), options), "bpf_tc_attach")
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.EINVAL):
                error.strerror = (
                    f"{error.strerror}; priority {self._priority} is another filter's: "
                    "see propagation.tc.priority"
                )
            raise

    def _detach(self, index: int, priority: int) -> None:
        if self._is_on(index, priority):
            options = self._options(priority)
            _check(library().bpf_tc_detach(_hook(index, _EGRESS), options), "bpf_tc_detach", _GONE)

    def _options(self, priority: int, *, prog_fd: int = 0, flags: int = 0) -> Any:
        """A reference to the options of our filter, as an argument."""
        size = ctypes.sizeof(TcOptions)
        return ctypes.byref(TcOptions(size, prog_fd, flags, 0, self._handle, priority))

    def _created(self, index: int) -> bool:
        return any(self._directory.glob(f"{index}-*/created"))

    def _markers(self, index: int) -> list[tuple[int, Path]]:
        """Priority and directory of each filter that the bpffs remembers of an interface."""
        found = self._directory.glob(f"{index}-*")
        return [(int(marker.name.partition("-")[2]), marker) for marker in sorted(found)]


def remove_all(bpffs: Path, *, name: str) -> None:
    """Removes every filter that an agent with this bpffs has put, whatever its priority."""
    filters = Filters(name=name, bpffs=bpffs, priority=0)
    for index in filters.remembered():
        filters.take(index)
    (bpffs / "clsact").rmdir()


def _hook(index: int, point: int) -> Any:
    """A reference to a hook, as an argument."""
    return ctypes.byref(TcHook(sz=ctypes.sizeof(TcHook), ifindex=index, attach_point=point))


def _create(index: int) -> bool:
    """Adds the qdisc to an interface; returns False when there is one already."""
    created = library().bpf_tc_hook_create(_hook(index, _EGRESS))
    return _check(created, "bpf_tc_hook_create", {errno.EEXIST})


def _has_filters(index: int) -> bool:
    both = (rtnetlink.INGRESS, rtnetlink.EGRESS)
    return any(rtnetlink.filters(index, parent) for parent in both)


def _check(result: int, call: str, ignored: Collection[int] = ()) -> bool:
    """Returns False for an error in `ignored`; raises the others."""
    if -result in ignored:
        return False
    check(result, call)
    return True


def _forget(marker: Path) -> None:
    for directory in (marker / "created", marker):
        if directory.is_dir():
            directory.rmdir()
