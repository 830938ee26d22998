"""The report of the agent: its counters, its status and its metrics, read from all its parts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from throughline import __version__
from throughline.agent.parts import Parts
from throughline.agent.status import (
    FilesStatus,
    KindCounts,
    PacketsStatus,
    ServiceCounts,
    Status,
    StatusWriter,
)
from throughline.probes.libraries import Libraries
from throughline.probes.uprobes import Site
from throughline.records import readings
from throughline.records.events import SeriesKey
from throughline.services import cgroups
from throughline.services.naming import Service, agent_service
from throughline.steps import Turns
from throughline.telemetry.conventions import grpc_failed, http_failed
from throughline.telemetry.series import Series
from throughline.telemetry.totals import Totals


class Report:
    """Reads the parts; writes the status file and submits metrics."""

    def __init__(self, parts: Parts, series: Series) -> None:
        self._parts = parts
        self._series = series
        self._status = StatusWriter(parts.config.agent.status_path)

    # -- counters and metrics ----------------------------------------------------------------------

    def count(self) -> dict[str, int]:
        """Reads every counter. Their names are in docs/operator/troubleshoot.md."""
        parts = self._parts
        counters = readings.counters(parts.programs.map_fd("tl_counters")) | parts.counts
        counters |= parts.steps.failures
        counters["undecodable"] = parts.records.undecodable
        counters["unresolved_cgroup"] = parts.services.unresolved
        counters["cgroup_unreadable"] = parts.services.unreadable
        counters["cgroups_too_many"] = parts.services.too_many
        counters["series_unwritten"] = self._series.failures
        if parts.programs.interfaces is not None:
            counters |= parts.programs.interfaces.counts
        if parts.files is not None:
            counters |= {f"tls_{reason}": n for reason, n in parts.files.failures.items()}
        if parts.go is not None:
            counters |= {f"go_{reason}": n for reason, n in parts.go.failures.items()}
        parts.counters = counters
        return counters

    def read_series(self) -> Turns[None]:
        """Reads the histograms and the counters for metrics."""
        yield from self._series.reading()
        yield from self._series.decoding()
        self.count()

    def send_metrics(self) -> Turns[None]:
        """Reads everything that metrics are made of, and submits them."""
        yield from self.read_series()
        self.submit_metrics()

    def submit_metrics(self) -> None:
        """Submits metrics of what was read last."""
        parts = self._parts
        own = agent_service(host=parts.host, resource_attributes=parts.config.resource_attributes)
        since = parts.counting_since_unix_ns, int(parts.started_unix * 1e9)
        points = tuple(self._series.points())
        totals = Totals(points, parts.counters, own, *since, time.time_ns())
        parts.pipeline.submit_metrics(totals)

    # -- status ------------------------------------------------------------------------------------

    def write_status(self) -> None:
        """Writes the status file. Raises OSError."""
        self._status.write(self._read().as_json())

    def remove_status(self) -> None:
        """Removes the status file. Raises OSError."""
        self._status.remove()

    def _read(self) -> Status:
        parts = self._parts
        programs = parts.programs
        counters = self.count()
        parts.records.forget_names(self._series.names)
        absent = [root for root in parts.roots if not cgroups.exists(parts.cgroup2 / root)]
        tls = parts.files if parts.groups["tls"].is_on else None
        return Status(
            version=__version__,
            pid=os.getpid(),
            started_unix=parts.started_unix,
            counting_since_unix_ns=parts.counting_since_unix_ns,
            updated_unix=time.time(),
            missing=tuple(programs.missing()),
            absent_cgroups=tuple(f"/{root}" for root in absent),
            fionread_broken=programs.objects.fionread_broken,
            legacy_programs=programs.objects.variant != "",
            groups=parts.groups,
            attached=programs.attached,
            packets=self._packets(),
            tls=probed(tls, "tl_ssl_"),
            go=probed(parts.files, "tl_go_", parts.go.describe) if parts.go else None,
            counters=counters,
            services=service_counts(self._series.counts(), sampled=parts.records.sampled),
            export=parts.pipeline.status(),
        )

    def _packets(self) -> PacketsStatus | None:
        parts = self._parts
        if not parts.groups["packets"].is_on:
            return None
        interfaces = parts.programs.interfaces
        attached = parts.programs.attached
        return PacketsStatus(
            peers=tuple(map(str, parts.config.propagation.peers)),
            new_connections=tuple(a.where for a in attached if a.name == "tl_packets_ops"),
            older_connections=tuple(interfaces.attached) if interfaces else (),
            refused=interfaces.refused if interfaces else {},
        )


def service_counts(
    counts: Iterable[tuple[Service, SeriesKey, int]],
    *,
    sampled: Mapping[tuple[str, str], int],
) -> dict[str, ServiceCounts]:
    """Requests by service and kind.

    An error is an answer of 500 and above of a server, and one of 400 and above to a client. For
    gRPC it is what the semantic conventions call an error.
    """
    found: dict[str, ServiceCounts] = {}
    for service, series, count in counts:
        kinds = found.setdefault(service.name, ServiceCounts(service.unit, {})).kinds
        kind = kinds.get(series.kind)
        if kind is None:
            known = sampled.get((service.name, series.kind), 0)
            kind = kinds[series.kind] = KindCounts(sampled=known)
        kind.requests += count
        if _is_error(series):
            kind.errors += count
    return found


def _is_error(series: SeriesKey) -> bool:
    server = series.kind == "server"
    if series.grpc:
        return grpc_failed(series.status, server=server)
    return http_failed(series.status, server=server)


def probed(
    libraries: Libraries | None,
    prefix: str,
    describe: Callable[[Sequence[Site]], Mapping[str, str]] = lambda _: {},
) -> FilesStatus | None:
    """The files with programs of this prefix, and what else is known of each.

    None while the group that has them is off.
    """
    if libraries is None:
        return None
    files: list[Mapping[str, Any]] = [
        {**found.as_json(sites), **describe(sites)}
        for found in libraries.attached
        if (sites := [site for site in found.sites if site.program.startswith(prefix)])
    ]
    return FilesStatus(tuple(files))
