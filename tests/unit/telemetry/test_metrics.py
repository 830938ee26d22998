from __future__ import annotations

from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE

from tests.fixtures import witness
from tests.fixtures.records import SHOP, service
from throughline.records.durations import Histogram, SeriesKey
from throughline.services.naming import Service
from throughline.telemetry.metrics import (
    BOUNDS,
    counter_metrics,
    duration_metrics,
    encode,
    request,
)
from throughline.telemetry.series import Point
from throughline.telemetry.totals import Totals

CART = service("cart")
OFF = Service("off", "off.service", "system.slice/off.service", False, {"service.name": "off"})


def point(of: Service = SHOP, **changes: Any) -> Point:
    series = {"kind": "server", "method": "GET", "status": 200, "http_version": "1.1", **changes}
    return Point(of, SeriesKey(**series), 5, Histogram(30_000_000, (0, 2, 1, *[0] * 12)))


def sent(*parts: Any) -> ExportMetricsServiceRequest:
    data = request(parts).SerializeToString()
    found: ExportMetricsServiceRequest = ExportMetricsServiceRequest.FromString(data)
    return found


def attributes(point: Any) -> dict[str, str | int]:
    return {
        item.key: item.value.int_value
        if item.value.HasField("int_value")
        else item.value.string_value
        for item in point.attributes
    }


def durations(*points: Point) -> dict[tuple[str, str], Any]:
    found = duration_metrics(points, now_unix_ns=9)
    result = {}
    for part in sent(*found).resource_metrics:
        name = next(
            a.value.string_value for a in part.resource.attributes if a.key == "service.name"
        )
        for metric in part.scope_metrics[0].metrics:
            assert metric.unit == ("ms" if metric.name.startswith("rpc.") else "s")
            assert metric.histogram.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
            result[name, metric.name] = list(metric.histogram.data_points)
    return result


def test_durations() -> None:
    assert len(BOUNDS) + 1 == 15
    (one,) = durations(point())["shop", "http.server.request.duration"]
    assert (one.count, one.sum) == (3, 0.03)
    assert list(one.bucket_counts) == [0, 2, 1, *[0] * 12]
    assert tuple(one.explicit_bounds) == BOUNDS
    assert (one.start_time_unix_nano, one.time_unix_nano) == (5, 9)
    assert not one.HasField("min"), "totals know no minimum"
    assert attributes(one) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "url.scheme": "http",
    }


def test_calls_of_grpc_are_not_among_requests_of_http() -> None:
    call: dict[str, Any] = {"grpc": True, "method": "_OTHER", "http_version": "2"}
    found = durations(point(), point(**call, status=0), point(**call, status=5, kind="client"))
    assert {name for _, name in found} == {
        "http.server.request.duration",
        "rpc.server.duration",
        "rpc.client.duration",
    }
    (one,) = found["shop", "rpc.server.duration"]
    assert (one.count, one.sum) == (3, 30)
    assert tuple(one.explicit_bounds) == tuple(1000 * bound for bound in BOUNDS)
    assert attributes(one) == {"rpc.system": "grpc", "rpc.grpc.status_code": 0}
    (one,) = found["shop", "rpc.client.duration"]
    assert attributes(one) == {"rpc.system": "grpc", "rpc.grpc.status_code": 5}


def test_services_that_are_not_traced_any_more_are_left_out() -> None:
    found = durations(point(), point(CART), point(kind="client"), point(OFF))
    assert {key: sum(one.count for one in points) for key, points in found.items()} == {
        ("shop", "http.server.request.duration"): 3,
        ("cart", "http.server.request.duration"): 3,
        ("shop", "http.client.request.duration"): 3,
    }


def test_errors() -> None:
    def error(kind: str, status: int) -> str | int | None:
        ((one,),) = durations(point(kind=kind, status=status)).values()
        return attributes(one).get("error.type")

    assert error("server", 404) is None
    assert error("client", 404) == "404"
    assert error("server", 503) == "503"
    assert error("server", 0) == "connection_closed"


def test_counters() -> None:
    counters = {
        "throughline.skipped": {"pipelined": 3, "ambiguous": 0},
        "throughline.spans": {"": 7},
        "throughline.none": {},
    }
    part = counter_metrics(counters, agent=CART, start_unix_ns=lambda _: 5, now_unix_ns=9)
    metrics = sent(part).resource_metrics[0].scope_metrics[0].metrics
    found = {
        (metric.name, str(attributes(point).get("reason", ""))): point.as_int
        for metric in metrics
        for point in metric.sum.data_points
    }
    assert found == {
        ("throughline.skipped", "pipelined"): 3,
        ("throughline.skipped", "ambiguous"): 0,
        ("throughline.spans", ""): 7,
    }
    assert all(metric.sum.is_monotonic for metric in metrics)


def test_nothing_is_sent_for_nothing() -> None:
    part = counter_metrics({}, agent=CART, start_unix_ns=lambda _: 5, now_unix_ns=9)
    assert not sent(part).resource_metrics


def test_what_was_seen_inside_tls_is_a_series_of_its_own() -> None:
    parts = duration_metrics([point(), point(tls=True)], now_unix_ns=2)
    points = sent(*parts).resource_metrics[0].scope_metrics[0].metrics[0].histogram.data_points
    assert [attributes(point)["url.scheme"] for point in points] == ["http", "https"]


def test_the_bytes_are_those_of_the_opentelemetry_sdk() -> None:
    totals = Totals(
        points=(point(), point(status=404), point(CART, method="_OTHER", tls=True)),
        counters={"skip_pipelined": 3, "ambiguous": 0, "series_unwritten": 1 << 40},
        agent=service("throughline"),
        kernel_since_unix_ns=5,
        agent_since_unix_ns=5,
        now_unix_ns=9,
    )
    assert encode(totals) == witness.metrics_request(totals)


def test_since_when_a_counter_counts() -> None:
    """The kernel's go on from an earlier run."""
    totals = Totals((), {"skip_pipelined": 3, "series_unwritten": 1}, CART, 5, 7, 9)
    found = ExportMetricsServiceRequest.FromString(encode(totals))
    points = found.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points
    since = {p.attributes[0].value.string_value: p.start_time_unix_nano for p in points}
    assert since == {"skip_pipelined": 5, "series_unwritten": 7}
