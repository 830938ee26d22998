"""Records and services as the kernel and the host would give them."""

from __future__ import annotations

import random
from typing import Any

from throughline.records.events import SpanRecord
from throughline.services.naming import Service

START = 1_763_830_000_000_000_000
_random = random.Random(23)


def record(**changes: Any) -> SpanRecord:
    """A complete server span, changed as asked."""
    values: dict[str, Any] = {
        "kind": "server",
        "trace_id": _random.randbytes(16),
        "span_id": _random.randbytes(8),
        "parent_span_id": _random.randbytes(8),
        "trace_flags": 1,
        "evidence": "header",
        "end": "complete",
        "start_unix_ns": START,
        "end_unix_ns": START + 12_300_000,
        "cgroup_id": 7,
        "pid": 99,
        "method": "GET",
        "target": "/cart/7?user=1",
        "target_length": 14,
        "host": "shop.example:8080",
        "http_version": "1.1",
        "status": 200,
        "local_address": "10.0.0.1",
        "local_port": 8080,
        "peer_address": "10.0.0.2",
        "peer_port": 40001,
        "tracestate": "",
    }
    return SpanRecord(**{**values, **changes})


def service(name: str = "shop", **attributes: str) -> Service:
    unit = f"{name}.service"
    found = {"service.name": name, "host.name": "h1", "systemd.unit": unit, **attributes}
    return Service(name, unit, f"system.slice/{unit}", True, found)


SHOP = service()


def batch(count: int, *, of: Service = SHOP) -> list[tuple[SpanRecord, Service]]:
    """`count` records whose start times are consecutive, so that order can be checked."""
    return [(record(start_unix_ns=START + number), of) for number in range(count)]
