"""What the status file says of what the agent does: services, packets, TLS, Go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from throughline.events import DurationRow
from throughline.kernel.tc import Interfaces
from throughline.kernel.uprobes import Site
from throughline.libraries import Libraries
from throughline.services import Service
from throughline.spans import grpc_failed


def services(
    rows: Iterable[DurationRow],
    *,
    lookup: Callable[[int], Service],
    sampled: Mapping[tuple[str, str], int],
) -> dict[str, Any]:
    """Requests by service and kind. An error: a server's from 500 on, a client's from 400 on.

    Of gRPC, what the semantic conventions call one.
    """
    found: dict[str, Any] = {}
    for row in rows:
        service = lookup(row.cgroup_id)
        entry = found.setdefault(service.name, {"unit": service.unit})
        kind = entry.setdefault(row.kind, {"requests": 0, "errors": 0, "sampled": 0})
        kind["requests"] += row.count
        server = row.kind == "server"
        if row.grpc:
            bad = grpc_failed(row.status, server=server)
        else:
            bad = row.status >= (500 if server else 400) or row.status == 0
        kind["errors"] += row.count if bad else 0
        kind["sampled"] = sampled.get((service.name, row.kind), 0)
    return found


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
