"""Turn the kernel's duration histograms and the agent's own counters into OpenTelemetry metrics.

`http.server.request.duration` and `http.client.request.duration` follow the semantic conventions,
https://opentelemetry.io/docs/specs/semconv/http/http-metrics/, with one gap: the kernel counts
clients by service, not by server, so the client histogram has no `server.address`. Calls of gRPC
are in `rpc.server.duration` and `rpc.client.duration`, in milliseconds, as those conventions ask
(https://opentelemetry.io/docs/specs/semconv/rpc/rpc-metrics/), with the same gap and another: the
kernel does not count by method either.
Everything is cumulative: a report that does not arrive loses nothing, the next one has it all. A
total never goes back while its start time stays the same, see series.py.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
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

from throughline.records.events import COUNTERS, SeriesKey
from throughline.services.naming import Service
from throughline.telemetry.series import Point
from throughline.telemetry.spans import CONNECTION_CLOSED, SCHEMA_URL, SCOPE, resource

# Seconds; the advice of the semantic conventions for HTTP durations, as events.DurationRow counts.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_BOUNDS_MS = tuple(1000 * bound for bound in BOUNDS)
_CUMULATIVE = AggregationTemporality.CUMULATIVE


def duration_metrics(found: Iterable[Point], *, now_unix_ns: int) -> list[ResourceMetrics]:
    """One ResourceMetrics for each traced service."""
    by_service: dict[Service, list[Point]] = defaultdict(list)
    for point in found:
        if point.service.traced:
            by_service[point.service].append(point)
    result = []
    for service, of_service in by_service.items():
        points: dict[tuple[str, bool], list[HistogramDataPoint]] = defaultdict(list)
        for point in of_service:
            series, histogram = point.series, point.histogram
            points[series.kind, series.grpc].append(
                HistogramDataPoint(
                    attributes=_attributes(series),
                    start_time_unix_nano=point.start_unix_ns,
                    time_unix_nano=now_unix_ns,
                    count=histogram.count,
                    sum=histogram.sum_ns / (1e6 if series.grpc else 1e9),
                    bucket_counts=histogram.buckets,
                    explicit_bounds=_BOUNDS_MS if series.grpc else BOUNDS,
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
                data=Histogram(data_points=of_kind, aggregation_temporality=_CUMULATIVE),
            )
            for (kind, grpc), of_kind in sorted(points.items())
        ]
        result.append(_resource_metrics(service, metrics))
    return result


def counter_metrics(
    counters: Mapping[str, Mapping[str, int]],
    *,
    agent: Service,
    start_unix_ns: Callable[[str], int],
    now_unix_ns: int,
) -> ResourceMetrics:
    """The agent's own counters as monotonic sums. `start_unix_ns` says since when a reason counts.

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
                        start_time_unix_nano=start_unix_ns(reason),
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


def everything(
    points: Iterable[Point],
    counters: Mapping[str, int],
    agent: Service,
    kernel_since_unix_ns: int,
    agent_since_unix_ns: int,
) -> MetricsData:
    """What is sent at a time. What the kernel has counted goes on from an earlier run of ours."""
    now_unix_ns = time.time_ns()

    def since(reason: str) -> int:
        return kernel_since_unix_ns if reason in COUNTERS else agent_since_unix_ns

    found = duration_metrics(points, now_unix_ns=now_unix_ns)
    own = {"throughline.events": counters}
    found.append(counter_metrics(own, agent=agent, start_unix_ns=since, now_unix_ns=now_unix_ns))
    return metrics_data(found)


def metrics_data(parts: Iterable[ResourceMetrics]) -> MetricsData:
    """What the exporter takes; parts without a metric are left out."""
    return MetricsData(resource_metrics=[part for part in parts if part.scope_metrics[0].metrics])


def _attributes(series: SeriesKey) -> dict[str, str | int]:
    if series.grpc:
        return {"rpc.system": "grpc", "rpc.grpc.status_code": series.status}
    attributes: dict[str, str | int] = {
        "http.request.method": series.method,
        "url.scheme": "https" if series.tls else "http",
        "network.protocol.version": series.http_version,
    }
    if series.status:
        attributes["http.response.status_code"] = series.status
        if series.status >= (500 if series.kind == "server" else 400):
            attributes["error.type"] = str(series.status)
    else:
        attributes["error.type"] = CONNECTION_CLOSED
    return attributes


def _resource_metrics(service: Service, metrics: list[Metric]) -> ResourceMetrics:
    scope = ScopeMetrics(scope=SCOPE, metrics=metrics, schema_url=SCHEMA_URL)
    return ResourceMetrics(resource=resource(service), scope_metrics=[scope], schema_url=SCHEMA_URL)
