"""Request durations by service, as totals that never go back, whatever becomes of cgroups.

The kernel counts by cgroup, and each start of a unit makes another one. So the rows of a cgroup
that has gone are added to the totals of its service and taken out of the kernel's map, which has
room for others then. A row keeps the service that it was first given to. What cannot be read again
from the kernel is in a file that the next run finds after a crash, a reload or an upgrade.
A service that is forgotten, and comes again, begins new series: their start time says so, as
OpenTelemetry has it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from throughline.records.durations import (
    NO_REQUESTS,
    Buffer,
    Histogram,
    SeriesKey,
    decode_count,
    decode_histogram,
    decode_series,
)
from throughline.services.naming import Service, Services
from throughline.steps import Turns, finish
from throughline.telemetry import seriesfile
from throughline.telemetry.seriesfile import Owner, Total

log = logging.getLogger(__name__)

UNNAMED_SECONDS = 5.0  # after which a row whose cgroup nobody has met is of the unknown service
RETIRE_SECONDS = 5.0  # after the last request of a cgroup that has gone: connections outlive it
FORGET_SECONDS = 600.0  # after the last cgroup of a service has gone
MAX_TOTALS = 1 << 15
_EACH_TURN = 32  # rows, about 1 ms


class Table(Protocol):
    """The map `tl_durations`, see bpf/maps.py."""

    def entries(self) -> Iterator[list[tuple[bytes, memoryview]]]: ...

    def lookup(self, key: bytes) -> Buffer | None: ...

    def delete(self, key: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Point:
    """The requests of one series since `start_unix_ns`."""

    service: Service
    series: SeriesKey
    start_unix_ns: int
    histogram: Histogram


@dataclass(slots=True)
class _Row:
    """An entry of the kernel's map."""

    cgroup_id: int
    series: SeriesKey
    first: float
    since_unix_ns: int  # at this time it was not there yet
    owner: Owner | None = None
    count: int = 0
    changed: float = 0.0
    turn: int = 0
    histogram: Histogram = NO_REQUESTS  # as it was decoded last


class Series:
    """Reads `table`. `path` is the file of what an earlier run knew, if that is to go on."""

    def __init__(
        self,
        table: Table,
        *,
        services: Services,
        path: Path,
        start_unix_ns: int,
        adopting: bool,
        clock: Callable[[], float] = time.monotonic,
        unix: Callable[[], int] = time.time_ns,
    ) -> None:
        self._table = table
        self._services = services
        self._path = path
        self._clock = clock
        self._unix = unix
        self._rows: dict[bytes, _Row] = {}
        self._turn = 0
        self._read_unix_ns = start_unix_ns  # when the last reading began
        self._idle: dict[Owner, float] = {}  # those without rows, since when
        self._unsaved = False
        self._next_save = 0.0
        self.failures = 0  # of writing the file
        known = seriesfile.read(path) if adopting else None
        if known is None:
            # what is counted already belongs to series that nobody can go on with
            known = seriesfile.Known({}, {}, {}, [])
            self._delete(key for batch in table.entries() for key, _ in batch)
        self._delete(known.retired)
        self._of_cgroup = known.cgroups
        self._known: dict[Owner, Service] = known.services
        self._totals: dict[Owner, dict[SeriesKey, Total]] = known.totals

    # -- what is told ------------------------------------------------------------------------------

    def counts(self) -> Iterator[tuple[Service, SeriesKey, int]]:
        """Requests by service and series, in parts."""
        for owner, totals in self._totals.items():
            for series, total in totals.items():
                yield self._known[owner], series, total.retired.count
        for row in self._rows.values():
            if row.owner is not None:
                yield self._known[row.owner], row.series, row.count

    def points(self) -> list[Point]:
        """All series, as of the last `decoding`."""
        sums = {
            owner: {series: total.retired for series, total in totals.items()}
            for owner, totals in self._totals.items()
        }
        for row in self._rows.values():
            if row.owner is not None:
                sums[row.owner][row.series] += row.histogram
        return [
            Point(self._known[owner], series, self._totals[owner][series].start_unix_ns, found)
            for owner, by_series in sums.items()
            for series, found in by_series.items()
            if found.count
        ]

    @property
    def names(self) -> set[str]:
        """Of the services that have series."""
        return {service.name for service in self._known.values()}

    # -- what is read ------------------------------------------------------------------------------

    def read(self) -> None:
        finish(self.reading())

    def reading(self) -> Turns[None]:
        """Reads how many requests each row has; the other 16 numbers of it when they are sent."""
        now, unix = self._clock(), self._unix()
        self._turn += 1
        for batch in self._table.entries():
            for key, values in batch:
                row = self._rows.get(key)
                if row is None:
                    row = self._rows[key] = _Row(*decode_series(key), now, self._read_unix_ns)
                count = decode_count(values)
                if count != row.count:
                    row.count, row.changed = count, now
                row.turn = self._turn
            yield
        self._read_unix_ns = unix
        retired: list[bytes] = []
        for number, (key, row) in enumerate(list(self._rows.items()), 1):
            if not self._keep(row, now) and now >= self._next_save:
                self._retire(key, row)
                retired.append(key)
            if number % (8 * _EACH_TURN) == 0:
                yield
        self._forget(now)
        if retired or (self._unsaved and now >= self._next_save):
            self._save(retired)
        if retired:
            self._delete(retired)
            self._save([])

    def decoding(self) -> Turns[None]:
        """Reads what has changed since, for `points`."""
        for number, (key, row) in enumerate(list(self._rows.items()), 1):
            if row.histogram.count != row.count:
                values = self._table.lookup(key)
                if values is not None:
                    row.histogram = decode_histogram(values)
            if number % _EACH_TURN == 0:
                yield

    def remove(self) -> None:
        """The programs are detached: nobody goes on with these series."""
        self._path.unlink(missing_ok=True)

    # -- rows and totals ---------------------------------------------------------------------------

    def _keep(self, row: _Row, now: float) -> bool:
        """Gives a row to its service; False when the row is to be added to the totals."""
        service = self._services.find(row.cgroup_id)
        if row.owner is None:
            owner = self._of_cgroup.get(row.cgroup_id)
            if owner is None and service is None:
                if now - row.first < UNNAMED_SECONDS:
                    return True
                service = self._services.lookup(row.cgroup_id)
            if owner is None:
                assert service is not None
                owner = _owner(service)
                self._known[owner] = service
            self._own(row, owner)
        if service is not None and _owner(service) != row.owner:
            return False  # the rules have changed since it was named
        if service is not None:
            self._known[_owner(service)] = service
        if row.turn < self._turn - 1:
            return False  # somebody has taken it out of the map
        idle = now - max(row.changed, row.first) >= RETIRE_SECONDS
        return not idle or self._services.is_there(row.cgroup_id)

    def _own(self, row: _Row, owner: Owner) -> None:
        row.owner = owner
        self._idle.pop(owner, None)
        totals = self._totals.setdefault(owner, {})
        if row.series not in totals:
            totals[row.series] = Total(row.since_unix_ns)
        self._of_cgroup[row.cgroup_id] = owner
        self._unsaved = True

    def _retire(self, key: bytes, row: _Row) -> None:
        values = self._table.lookup(key)
        histogram = row.histogram if values is None else decode_histogram(values)
        if row.owner is not None:
            total = self._totals[row.owner][row.series]
            total.retired += histogram
        del self._rows[key]

    def _forget(self, now: float) -> None:
        """Forgets services that have had no row for long, and of many the longest."""
        used = {row.owner for row in self._rows.values()}
        for owner in self._totals.keys() - used:
            if now - self._idle.setdefault(owner, now) >= FORGET_SECONDS:
                self._drop(owner)
        if sum(map(len, self._totals.values())) > MAX_TOTALS:
            self._forget_surplus()
        owned = {row.cgroup_id for row in self._rows.values() if row.owner is not None}
        if len(owned) < len(self._of_cgroup):
            self._of_cgroup = {n: owner for n, owner in self._of_cgroup.items() if n in owned}

    def _forget_surplus(self) -> None:
        """Forgets services without rows, those without for longest first, then other series."""
        surplus = sum(map(len, self._totals.values())) - MAX_TOTALS
        for owner in sorted(self._idle, key=self._idle.__getitem__):
            if surplus <= 0:
                return
            surplus -= len(self._totals[owner])
            self._drop(owner)
        used = {(row.owner, row.series) for row in self._rows.values()}
        for owner, totals in self._totals.items():
            unused = [series for series in totals if (owner, series) not in used]
            for series in unused[: max(0, surplus)]:
                del totals[series]
                surplus -= 1

    def _drop(self, owner: Owner) -> None:
        del self._totals[owner], self._known[owner], self._idle[owner]
        self._unsaved = True

    # -- the file ----------------------------------------------------------------------------------

    def _save(self, retired: list[bytes]) -> None:
        began = self._clock()
        known = seriesfile.Known(self._of_cgroup, self._known, self._totals, retired)
        try:
            seriesfile.write(self._path, known)
        except OSError as error:  # a full /run: series begin anew with the next run
            if not self.failures:
                log.warning("%s cannot be written: %s", self._path, error.strerror)
            self.failures += 1
        else:
            self._unsaved = False
        now = self._clock()
        self._next_save = now + 20 * (now - began)  # at most 5 % of the time

    def _delete(self, keys: Iterator[bytes] | list[bytes]) -> None:
        for key in list(keys):
            self._table.delete(key)


def _owner(service: Service) -> Owner:
    return service.name, service.cgroup
