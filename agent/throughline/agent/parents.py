"""How the calls of each service came by their parents, as the programs have counted it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from throughline.bpf import trust
from throughline.services.naming import Service
from throughline.steps import Turns

READ_SECONDS = 10.0  # between two readings
_EACH_TURN = 128  # programs, about 1 ms


@dataclass(slots=True)
class ParentCounts:
    """The calls of one service, and what was seen that contradicts the evidence of threads."""

    unit: str
    found: Counter[str] = field(default_factory=Counter)  # enum tl_found -> calls
    contradicted: Counter[str] = field(default_factory=Counter)  # contradictions of enum tl_seen

    def as_json(self) -> dict[str, Any]:
        """Reasons and contradictions that were not met are left out."""
        none = {why: n for why, n in self.found.items() if n and why not in ("proven", "likely")}
        return {
            "proven": self.found["proven"],
            "likely": self.found["likely"],
            "none": none,
            "contradicted": {kind: n for kind, n in self.contradicted.items() if n},
        }


class Named(Protocol):
    """The services, see services/naming.py."""

    def find(self, cgroup_id: int) -> Service | None: ...


class Parents:
    """Reads the map `tl_trust`. A program whose cgroup is not known any more is of no service."""

    def __init__(
        self,
        read: Callable[[], Iterator[trust.Trust]],
        services: Named,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._services = services
        self._clock = clock
        self._next = 0.0
        self.by_service: Mapping[str, ParentCounts] = {}  # as of the last reading

    def reading(self) -> Turns[None]:
        """Reads every program in turns, at most every ten seconds."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + READ_SECONDS
        found: dict[str, ParentCounts] = {}
        for number, program in enumerate(self._read(), 1):
            self._add(found, program)
            if number % _EACH_TURN == 0:
                yield
        self.by_service = found

    def _add(self, found: dict[str, ParentCounts], program: trust.Trust) -> None:
        service = self._services.find(program.cgroup_id)
        seen = {kind: program.seen[kind] for kind in trust.CONTRADICTIONS}
        if service is None or not (any(program.found.values()) or any(seen.values())):
            return
        counts = found.setdefault(service.name, ParentCounts(service.unit))
        counts.found.update(program.found)
        counts.contradicted.update(seen)
