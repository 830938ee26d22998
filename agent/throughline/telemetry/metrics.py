"""Turn the kernel's duration histograms and the agent's own counters into OTLP metrics.

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

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)

from throughline.bpf.counters import COUNTERS
from throughline.records.durations import SeriesKey
from throughline.services.naming import Service
from throughline.telemetry import messages
from throughline.telemetry.conventions import CONNECTION_CLOSED, SCHEMA_URL, http_failed
from throughline.telemetry.series import Point
from throughline.telemetry.totals import Totals

# Seconds, as the semantic conventions advise; records.durations.Histogram counts by them.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_BOUNDS_MS = tuple(1000 * bound for bound in BOUNDS)


def encode(totals: Totals) -> bytes:
    """The request that reports these totals. Raises ValueError for one that no message can hold."""

    def since(reason: str) -> int:
        kernel = reason in COUNTERS
        return totals.kernel_since_unix_ns if kernel else totals.agent_since_unix_ns

    found = duration_metrics(totals.points, now_unix_ns=totals.now_unix_ns)
    found.append(
        counter_metrics(
            {"throughline.events": totals.counters},
            agent=totals.agent,
            start_unix_ns=since,
            now_unix_ns=totals.now_unix_ns,
        )
    )
    return messages.encode(request(found))


def request(parts: Iterable[ResourceMetrics]) -> ExportMetricsServiceRequest:
    """The request of these parts, without those that have no metric."""
    return ExportMetricsServiceRequest(
        resource_metrics=[part for part in parts if part.scope_metrics[0].metrics]
    )


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
            key = (point.series.kind, point.series.grpc)
            points[key].append(_duration(point, now_unix_ns=now_unix_ns))
        metrics = [
            Metric(
                name=f"rpc.{kind}.duration" if grpc else f"http.{kind}.request.duration",
                description=f"Duration of {'RPC' if grpc else 'HTTP'} {kind} requests.",
                unit="ms" if grpc else "s",
                histogram=Histogram(
                    data_points=of_kind,
                    aggregation_temporality=AGGREGATION_TEMPORALITY_CUMULATIVE,
                ),
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
    "" stands for a counter without one. Example: {"throughline.events": {"skip_tunnel": 3}}.
    """
    metrics = [
        Metric(
            name=name,
            unit="1",
            sum=Sum(
                data_points=[
                    NumberDataPoint(
                        attributes=messages.attributes({"reason": reason} if reason else {}),
                        start_time_unix_nano=start_unix_ns(reason),
                        time_unix_nano=now_unix_ns,
                        as_int=total,
                    )
                    for reason, total in reasons.items()
                ],
                aggregation_temporality=AGGREGATION_TEMPORALITY_CUMULATIVE,
                is_monotonic=True,
            ),
        )
        for name, reasons in counters.items()
        if reasons
    ]
    return _resource_metrics(agent, metrics)


def _duration(point: Point, *, now_unix_ns: int) -> HistogramDataPoint:
    """The totals of one series. They know no minimum and no maximum."""
    series, histogram = point.series, point.histogram
    return HistogramDataPoint(
        attributes=messages.attributes(_attributes(series)),
        start_time_unix_nano=point.start_unix_ns,
        time_unix_nano=now_unix_ns,
        count=histogram.count,
        sum=histogram.sum_ns / (1e6 if series.grpc else 1e9),
        bucket_counts=histogram.buckets,
        explicit_bounds=_BOUNDS_MS if series.grpc else BOUNDS,
    )


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
        if http_failed(series.status, server=series.kind == "server"):
            attributes["error.type"] = str(series.status)
    else:
        attributes["error.type"] = CONNECTION_CLOSED
    return attributes


def _resource_metrics(service: Service, metrics: list[Metric]) -> ResourceMetrics:
    scope = ScopeMetrics(scope=messages.SCOPE, metrics=metrics, schema_url=SCHEMA_URL)
    return ResourceMetrics(
        resource=messages.resource(service), scope_metrics=[scope], schema_url=SCHEMA_URL
    )
