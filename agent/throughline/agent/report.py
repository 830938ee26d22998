"""The report of the agent: its counters, its status and its metrics, read from all its parts."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from throughline import __version__
from throughline.agent.parents import ParentCounts, Parents
from throughline.agent.parts import Parts
from throughline.agent.status import (
    FilesStatus,
    KindCounts,
    PacketsStatus,
    ServiceCounts,
    Status,
    StatusWriter,
)
from throughline.bpf.counters import read_counters
from throughline.features.table import GROUPS
from throughline.probes.files import Files
from throughline.probes.provider import Provider
from throughline.records.durations import SeriesKey
from throughline.services import cgroups
from throughline.services.naming import Service, agent_service
from throughline.steps import Turns
from throughline.telemetry.conventions import grpc_failed, http_failed
from throughline.telemetry.series import Series
from throughline.telemetry.totals import Totals


class Report:
    """Reads the parts; writes the status file and submits metrics."""

    def __init__(self, parts: Parts, series: Series, parents: Parents) -> None:
        self._parts = parts
        self._series = series
        self._parents = parents
        self._status = StatusWriter(parts.config.agent.status_path)

    # -- counters and metrics ----------------------------------------------------------------------

    def count(self) -> dict[str, int]:
        """Reads every counter. docs/reference/counters.md has their names."""
        parts = self._parts
        counters = read_counters(parts.programs.map_fd("tl_counters")) | parts.counts
        counters |= parts.steps.failures
        counters["undecodable"] = parts.records.undecodable
        counters["unresolved_cgroup"] = parts.services.unresolved
        counters["cgroup_unreadable"] = parts.services.unreadable
        counters["cgroups_too_many"] = parts.services.too_many
        counters["series_unwritten"] = self._series.failures
        if parts.programs.interfaces is not None:
            counters |= parts.programs.interfaces.counts
        counters |= self._failures_of_probing()
        parts.counters = counters
        return counters

    def _failures_of_probing(self) -> Counter[str]:
        """What could not be done with files: those of all groups are counted as `tls_…`."""
        parts = self._parts
        failures: Counter[str] = Counter()
        if parts.files is not None:
            failures.update({f"tls_{reason}": n for reason, n in parts.files.failures.items()})
        for group, providers in parts.providers.items():
            for provider in providers:
                failures.update({f"{group}_{why}": n for why, n in provider.failures.items()})
        return failures

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
            uprobes=parts.uprobes.value if parts.uprobes else None,
            groups=parts.groups,
            attached=programs.attached,
            packets=self._packets(),
            files={group.name: self._files(group.name) for group in GROUPS.values() if group.files},
            counters=counters,
            services=service_counts(
                self._series.counts(),
                sampled=parts.records.sampled,
                parents=self._parents.by_service,
            ),
            export=parts.pipeline.status(),
        )

    def _files(self, group: str) -> FilesStatus | None:
        parts = self._parts
        if parts.files is None or group not in parts.providers:
            return None
        return probed(parts.files, parts.providers[group])

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
    parents: Mapping[str, ParentCounts] | None = None,
) -> dict[str, ServiceCounts]:
    """Requests by service and kind, and how the calls of services came by their parents.

    An error is an answer of 500 and above of a server, and one of 400 and above to a client. For
    gRPC it is what the semantic conventions call an error.
    """
    found = {name: ServiceCounts(known.unit, {}, known) for name, known in (parents or {}).items()}
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


def probed(files: Files, providers: Sequence[Provider]) -> FilesStatus:
    """The files that have sites of these providers."""
    return FilesStatus(
        tuple(
            {**file.as_json(provider.name), **provider.describe(file.probed(provider.name))}
            for file in files.attached
            for provider in providers
            if provider.name in file.sites
        )
    )
