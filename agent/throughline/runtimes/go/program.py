"""A Go program, as the analysis describes it."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass


class UnsupportedError(Exception):
    """A Go program that is too old, too new, or lacks a table that the analysis needs."""


def check_stop(stop: threading.Event | None) -> None:
    """Raises UnsupportedError when `stop` is set: nobody waits for the analysis any more."""
    if stop is not None and stop.is_set():
        raise UnsupportedError("given up")


@dataclass(frozen=True, slots=True)
class FunctionSite:
    """Where a uprobe sees the arguments of a function."""

    offset: int  # in the file
    address: int  # as linked
    single_stepped: bool  # see arch.Place
    restarts: bool = False  # see arch.Place


@dataclass(frozen=True, slots=True)
class Program:
    """A Go program. Names are those of its function table and of its type data."""

    version: str  # of Go, "go1.22.10"
    path: str  # of the main package; "" where the build information has none
    modules: Mapping[str, str]  # path -> version
    build_id: str
    sites: Mapping[str, FunctionSite]  # function -> where it is probed
    offsets: Mapping[str, int]  # "runtime.g.goid" -> bytes
    types: Mapping[str, int]  # "*net.TCPConn" -> address of its descriptor, as linked
    sources: Mapping[str, str]  # key of `offsets` -> "types", "dwarf" or "table"
    missing: Mapping[str, str]  # feature -> why the program does not have it

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
    """The values of GOEXPERIMENT that a program was built with, apart from the default."""
    _, _, said = version.partition(" X:")
    return tuple(said.split(" ")[0].split(",")) if said else ()
