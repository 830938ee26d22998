"""The counts of an earlier run, from its status file: this run goes on with them.

An earlier run whose programs still serve has counted on in the kernel. The file is not trusted to
have any shape, since an agent of another release may have written it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Earlier:
    """What goes on."""

    counting_since_unix_ns: int
    sampled: Mapping[tuple[str, str], int]  # spans by service and kind


def read(path: Path, *, adopting: bool) -> Earlier:
    """The counts of the run that wrote the file, however old it is; none unless `adopting`."""
    found = _load(path) if adopting else {}
    since = found.get("counting_since_unix_ns")
    return Earlier(since if isinstance(since, int) else time.time_ns(), _sampled(found))


def _load(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sampled(status: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    services = status.get("services")
    counts: dict[tuple[str, str], int] = {}
    for name, service in services.items() if isinstance(services, dict) else ():
        for kind in ("server", "client"):
            row = service.get(kind) if isinstance(service, dict) else None
            count = row.get("sampled") if isinstance(row, dict) else None
            if isinstance(count, int):
                counts[name, kind] = count
    return counts
