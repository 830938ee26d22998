"""What the status file says of what the agent does: services, packets, TLS, Go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from throughline.bpf.tc import Interfaces
from throughline.probes.libraries import Libraries
from throughline.probes.uprobes import Site
from throughline.records.durations import SeriesKey
from throughline.services.naming import Service
from throughline.telemetry.conventions import grpc_failed, http_failed


def services(
    counts: Iterable[tuple[Service, SeriesKey, int]],
    *,
    sampled: Mapping[tuple[str, str], int],
) -> dict[str, Any]:
    """Requests by service and kind. An error: a server's from 500 on, a client's from 400 on.

    Of gRPC, what the semantic conventions call one.
    """
    found: dict[str, Any] = {}
    for service, series, count in counts:
        entry = found.setdefault(service.name, {"unit": service.unit})
        kind = entry.get(series.kind)
        if kind is None:
            known = sampled.get((service.name, series.kind), 0)
            kind = entry[series.kind] = {"requests": 0, "errors": 0, "sampled": known}
        kind["requests"] += count
        if _is_error(series):
            kind["errors"] += count
    return found


def _is_error(series: SeriesKey) -> bool:
    server = series.kind == "server"
    if series.grpc:
        return grpc_failed(series.status, server=server)
    return http_failed(series.status, server=server)


def packets(
    interfaces: Interfaces | None,
    *,
    peers: Iterable[IPv4Network | IPv6Network],
    cgroups: Sequence[str],
) -> dict[str, Any]:
    """Who writes the option on which connections: on new ones the program at `cgroups`."""
    return {
        "peers": [str(peer) for peer in peers],
        "new_connections": list(cgroups),
        "older_connections": [place.as_json() for place in interfaces.attached]
        if interfaces
        else [],
        "refused": interfaces.refused if interfaces else {},
    }


def probed(
    libraries: Libraries | None,
    prefix: str,
    describe: Callable[[Sequence[Site]], Mapping[str, str]] = lambda _: {},
) -> dict[str, Any] | None:
    """In which files there are programs of this prefix, and what else is known of each.

    None while the group that has them is off.
    """
    if libraries is None:
        return None
    return {
        "files": [
            {**found.as_json(sites), **describe(sites)}
            for found in libraries.attached
            if (sites := [site for site in found.sites if site.program.startswith(prefix)])
        ]
    }
