"""What a provider is: the part of the agent that knows one runtime or TLS library.

A provider finds the functions to probe in a file, or only what programs read in the memory of the
processes that map the file. The rest of the agent finds the files and processes, attaches the
programs, watches the files, and reports. It knows providers only by this interface; the one list of
them is features/providers.py. docs/developer/providers.md shows how to write one.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from throughline.probes.site import Site
from throughline.steps import Turns


@dataclass(frozen=True, slots=True)
class Found:
    """A file is one of this provider's, with functions that it probes at these sites.

    No sites: the provider probes nothing in the file, and only follows the processes that map it.
    """

    sites: tuple[Site, ...] = ()


class Answer(enum.Enum):
    """Why `find` returns no sites."""

    NOT_MINE = "the file is none of this provider's"
    LATER = "the file is still being looked into: ask again in the next second"


@dataclass(frozen=True, slots=True)
class Process:
    """A traced process that maps a file as code."""

    pid: int
    born: int  # in clock ticks since boot, as in /proc/PID/stat; 0: it could not be read
    start: int  # the address of the first mapping of code
    offset: int  # of the bytes there in the file
    listens: int = field(default=0, compare=False)  # grows when it calls listen()


@dataclass(frozen=True, slots=True)
class Probed:
    """An open file of this provider."""

    file: int  # the descriptor, valid until the tick ends
    sites: tuple[Site, ...]
    processes: tuple[Process, ...] = ()  # that map the file now
    refused: str = ""  # why no probe is attached


class Provider(Protocol):
    """All methods are called from the agent's one thread, where spans wait meanwhile."""

    @property
    def name(self) -> str:
        """One word, the same in each run."""

    @property
    def failures(self) -> Counter[str]:
        """Reason -> how often. The reasons become counters: GROUP_REASON."""

    def find(self, file: int) -> Found | Answer:
        """Whether an open file is this provider's, and its sites there.

        The file belongs to a traced process, and is not to be trusted. Takes a few milliseconds at
        most; work that takes longer goes to a thread of the provider, and the answer is LATER. May
        raise OSError and MalformedError. The descriptor is closed after the call: a provider that
        needs it for longer duplicates it.
        """

    def tick(self, probed: Sequence[Probed]) -> Turns[None]:
        """Runs once each second, with all files of this provider that processes map now.

        Yields after each millisecond of work, so that spans are read in between.
        """

    def describe(self, found: Probed) -> Mapping[str, object]:
        """What the status shows of a file, beside its path and programs."""

    def leaving(self, sites: Sequence[Site]) -> None:
        """The probes at these sites of a file are about to be detached."""

    def close(self) -> None:
        """Ends what the provider has started. Its probes are detached before."""
