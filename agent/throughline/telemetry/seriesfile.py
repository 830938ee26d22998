"""What `series.py` must know after a crash, a reload or an upgrade: a file in /run."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from throughline.records.durations import NO_REQUESTS, Histogram, SeriesKey
from throughline.services.naming import Service
from throughline.text import to_json

_VERSION = 1
Owner = tuple[str, str]  # name and cgroup of a service


@dataclass(slots=True)
class Total:
    """One series: when it began, and what cgroups that have gone have counted."""

    start_unix_ns: int
    retired: Histogram = NO_REQUESTS


@dataclass(frozen=True, slots=True)
class Known:
    cgroups: dict[int, Owner]  # whose rows are in the kernel's map
    services: dict[Owner, Service]
    totals: dict[Owner, dict[SeriesKey, Total]]
    retired: list[bytes]  # rows that are in the totals, and may still be in the kernel's map


def write(path: Path, known: Known) -> None:
    """Replaces the file. Raises OSError."""
    numbers = {owner: number for number, owner in enumerate(known.services)}
    content = {
        "version": _VERSION,
        "services": [
            {
                "name": service.name,
                "unit": service.unit,
                "cgroup": service.cgroup,
                "traced": service.traced,
                "attributes": dict(service.attributes),
                "series": [
                    [
                        *astuple(series),
                        total.start_unix_ns,
                        total.retired.sum_ns,
                        total.retired.buckets,
                    ]
                    for series, total in known.totals.get(owner, {}).items()
                ],
            }
            for owner, service in known.services.items()
        ],
        "cgroups": {str(cgroup_id): numbers[owner] for cgroup_id, owner in known.cgroups.items()},
        "retired": [key.hex() for key in known.retired],
    }
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(to_json(content), encoding="ascii")
    partial.chmod(0o600)
    partial.replace(path)


def read(path: Path) -> Known | None:
    """None when there is no such file, or one of another version, or one that is damaged."""
    try:
        content = json.loads(path.read_text(encoding="ascii"))
        return _known(content) if content["version"] == _VERSION else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _known(content: Any) -> Known:
    services = {(str(item["name"]), str(item["cgroup"])): item for item in content["services"]}
    owners = list(services)
    return Known(
        cgroups={int(n): owners[number] for n, number in content["cgroups"].items()},
        services={owner: _service(item) for owner, item in services.items()},
        totals={
            owner: {_series(values): _total(*values[-3:]) for values in item["series"]}
            for owner, item in services.items()
        },
        retired=[bytes.fromhex(key) for key in content["retired"]],
    )


def _service(item: Any) -> Service:
    attributes = {str(key): str(value) for key, value in item["attributes"].items()}
    return Service(
        item["name"], str(item["unit"]), item["cgroup"], bool(item["traced"]), attributes
    )


def _series(values: Any) -> SeriesKey:
    kind, method, status, version, tls, grpc = values[:-3]
    return SeriesKey(str(kind), str(method), int(status), str(version), bool(tls), bool(grpc))


def _total(start: Any, sum_ns: Any, buckets: Any) -> Total:
    found = tuple(int(count) for count in buckets)
    if len(found) != len(NO_REQUESTS.buckets):
        raise ValueError(buckets)
    return Total(int(start), Histogram(int(sum_ns), found))
