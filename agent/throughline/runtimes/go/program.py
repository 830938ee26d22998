"""What is known of a Go binary."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass


class UnsupportedError(Exception):
    """A Go binary that is too old or too new, or lacks what everything else is found by."""


def check_stop(stop: threading.Event | None) -> None:
    """Raises UnsupportedError when nobody waits for the analysis any more."""
    if stop is not None and stop.is_set():
        raise UnsupportedError("given up")


@dataclass(frozen=True, slots=True)
class Site:
    """Where a uprobe sees the arguments of a function."""

    offset: int  # in the file
    address: int  # as linked
    dear: bool  # the kernel single-steps the instruction
    # The instruction is the branch of the stack check: where it is taken (CF or ZF is set) the
    # goroutine gets a larger stack, or is preempted, and the function begins once more.
    restarts: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """A Go binary. Names are those of its function table and of its type data."""

    version: str  # of Go, "go1.22.10"
    path: str  # of the main package, "" when the build information does not tell
    modules: Mapping[str, str]  # path -> version
    build_id: str
    sites: Mapping[str, Site]  # function -> where it is probed
    offsets: Mapping[str, int]  # "runtime.g.goid" -> bytes
    types: Mapping[str, int]  # "*net.TCPConn" -> address of its descriptor, as linked
    sources: Mapping[str, str]  # key of `offsets` -> "types", "dwarf" or "table"
    missing: Mapping[str, str]  # feature -> why it cannot be had

    @property
    def minor(self) -> int:
        """22 of go1.22.10."""
        match = re.match(r"go1\.([0-9]+)", self.version)
        return int(match[1]) if match else 0

    @property
    def swiss_maps(self) -> bool:
        """Are its maps Swiss tables?"""
        return self.minor >= 24 and "noswissmap" not in experiments(self.version)


def experiments(version: str) -> tuple[str, ...]:
    """What GOEXPERIMENT was when a program was built, as far as it was not the default."""
    _, _, said = version.partition(" X:")
    return tuple(said.split(" ")[0].split(",")) if said else ()
