"""Turn the kernel's duration histograms and the agent's own counters into OpenTelemetry metrics.

`http.server.request.duration` and `http.client.request.duration` follow the semantic conventions,
https://opentelemetry.io/docs/specs/semconv/http/http-metrics/, with one gap: the kernel counts
clients by service, not by server, so the client histogram has no `server.address`. Calls of gRPC
are in `rpc.server.duration` and `rpc.client.duration`, in milliseconds, as those conventions ask
(https://opentelemetry.io/docs/specs/semconv/rpc/rpc-metrics/), with the same gap and another: the
kernel does not count by method either.
Everything is cumulative: a report that does not arrive loses nothing, the next one has it all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from operator import add
from typing import cast

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)

from throughline.events import DurationRow
from throughline.services import Service
from throughline.spans import CONNECTION_CLOSED, SCHEMA_URL, SCOPE, resource

# Seconds; the advice of the semantic conventions for HTTP durations, as events.DurationRow counts.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_BOUNDS_MS = tuple(1000 * bound for bound in BOUNDS)
_CUMULATIVE = AggregationTemporality.CUMULATIVE
# kind, method, status, HTTP version, inside TLS, gRPC
_Series = tuple[str, str, int, str, bool, bool]


def duration_metrics(
    rows: Iterable[DurationRow],
    *,
    lookup: Callable[[int], Service],
    start_unix_ns: int,
    now_unix_ns: int,
) -> list[ResourceMetrics]:
    """One ResourceMetrics for each traced service. Rows of cgroups of one service are added up."""
    totals: dict[Service, dict[_Series, tuple[int, int, tuple[int, ...]]]] = defaultdict(dict)
    for row in rows:
        series = totals[lookup(row.cgroup_id)]
        key = (row.kind, row.method, row.status, row.http_version, row.tls, row.grpc)
        known = series.get(key)
        if known is None:
            series[key] = (row.count, row.sum_ns, row.buckets)
        else:
            buckets = tuple(map(add, known[2], row.buckets))
            series[key] = (known[0] + row.count, known[1] + row.sum_ns, buckets)
    result = []
    for service, by_series in totals.items():
        if not service.traced:
            continue
        points: dict[tuple[str, bool], list[HistogramDataPoint]] = defaultdict(list)
        for key, (count, sum_ns, buckets) in by_series.items():
            kind, method, status, version, tls, grpc = key
            points[kind, grpc].append(
                HistogramDataPoint(
                    attributes={"rpc.system": "grpc", "rpc.grpc.status_code": status}
                    if grpc
                    else _attributes(kind, method, status, version, tls=tls),
                    start_time_unix_nano=start_unix_ns,
                    time_unix_nano=now_unix_ns,
                    count=count,
                    sum=sum_ns / (1e6 if grpc else 1e9),
                    bucket_counts=buckets,
                    explicit_bounds=_BOUNDS_MS if grpc else BOUNDS,
                    # Totals know no minimum and maximum; None leaves the optional fields unset.
                    min=cast(float, None),
                    max=cast(float, None),
                )
            )
        metrics = [
            Metric(
                name=f"rpc.{kind}.duration" if grpc else f"http.{kind}.request.duration",
                description=f"Duration of {'RPC' if grpc else 'HTTP'} {kind} requests.",
                unit="ms" if grpc else "s",
                data=Histogram(data_points=found, aggregation_temporality=_CUMULATIVE),
            )
            for (kind, grpc), found in sorted(points.items())
        ]
        result.append(_resource_metrics(service, metrics))
    return result


def counter_metrics(
    counters: Mapping[str, Mapping[str, int]],
    *,
    agent: Service,
    start_unix_ns: int,
    now_unix_ns: int,
) -> ResourceMetrics:
    """The agent's own counters as monotonic sums.

    `counters` is metric name -> reason -> total; the reason becomes the attribute `reason`, and
    "" stands for a counter without one. Example: {"throughline.skipped": {"pipelined": 3}}.
    """
    metrics = [
        Metric(
            name=name,
            description="",
            unit="1",
            data=Sum(
                data_points=[
                    NumberDataPoint(
                        attributes={"reason": reason} if reason else {},
                        start_time_unix_nano=start_unix_ns,
                        time_unix_nano=now_unix_ns,
                        value=total,
                    )
                    for reason, total in reasons.items()
                ],
                aggregation_temporality=_CUMULATIVE,
                is_monotonic=True,
            ),
        )
        for name, reasons in counters.items()
        if reasons
    ]
    return _resource_metrics(agent, metrics)


def metrics_data(parts: Iterable[ResourceMetrics]) -> MetricsData:
    """What the exporter takes; parts without a metric are left out."""
    return MetricsData(resource_metrics=[part for part in parts if part.scope_metrics[0].metrics])


def _attributes(
    kind: str, method: str, status: int, version: str, *, tls: bool
) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "http.request.method": method,
        "url.scheme": "https" if tls else "http",
        "network.protocol.version": version,
    }
    if status:
        attributes["http.response.status_code"] = status
        if status >= (500 if kind == "server" else 400):
            attributes["error.type"] = str(status)
    else:
        attributes["error.type"] = CONNECTION_CLOSED
    return attributes


def _resource_metrics(service: Service, metrics: list[Metric]) -> ResourceMetrics:
    scope = ScopeMetrics(scope=SCOPE, metrics=metrics, schema_url=SCHEMA_URL)
    return ResourceMetrics(resource=resource(service), scope_metrics=[scope], schema_url=SCHEMA_URL)
