"""Head sampling: which spans the standard samplers give, which flags they propagate."""

from __future__ import annotations

import random
from typing import Any

import pytest
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from tests.fixtures.service import traced_service

PARENT = "00f067aa0ba902b7"
COUNT = 23


def request(trace: str, flags: str) -> bytes:
    line = f"traceparent: 00-{trace}-{PARENT}-{flags}\r\n" if trace else ""
    return f"GET /in HTTP/1.1\r\nHost: service.example\r\n{line}\r\n".encode()


def ids(count: int, seed: int) -> list[str]:
    dice = random.Random(seed)
    return [f"{dice.getrandbits(128) | 1 << 127:032x}" for _ in range(count)]


@pytest.mark.parametrize(
    ("sampler", "arg", "root", "sampled_parent", "unsampled_parent"),
    [
        ("always_on", 1.0, 1, 1, 1),
        ("always_off", 1.0, 0, 0, 0),
        ("parentbased_always_on", 1.0, 1, 1, 0),
        ("parentbased_always_off", 1.0, 0, 1, 0),
        ("parentbased_traceidratio", 0.0, 0, 1, 0),
    ],
)
def test_samplers(
    sampler: str, arg: float, root: int, sampled_parent: int, unsampled_parent: int
) -> None:
    """Unsampled requests propagate the flag 0 and give no spans; all are counted."""
    with traced_service({"sampling": {"sampler": sampler, "arg": arg}}) as (traced, service, _):
        expected = 0
        traces = ids(COUNT, 59)
        for trace in traces:
            for flags, wanted in (("01", sampled_parent), ("02", unsampled_parent), ("", root)):
                text = request(trace if flags else "", flags)
                found = service.serve([text], "/out")
                assert int(found.flags, 16) & 1 == wanted, (sampler, flags)
                # the random flag says something about the id, not about sampling
                assert bool(int(found.flags, 16) & 2) == (flags != "01")
                assert (found.trace_id == trace) == bool(flags)
                expected += 2 * wanted
        spans = traced.wait_spans(expected)
        assert len(spans) == expected
        traced.wait_counter("requests_server", 3 * COUNT)
        counted = traced.counters()
        assert counted["requests_server"] == counted["requests_client"] == 3 * COUNT
        assert counted.get("spans_sent", 0) == expected
        assert counted.get("spans_unsampled", 0) == 6 * COUNT - expected
        status = traced.status()
        assert status is not None
        (mine,) = status["services"].values()
        assert mine["server"]["requests"] == mine["client"]["requests"] == 3 * COUNT
        assert traced.stop_agent() == 0
        assert _durations(traced.receiver.metrics) == {
            "http.server.request.duration": 3 * COUNT,
            "http.client.request.duration": 3 * COUNT,
        }


def _durations(resources: list[Any]) -> dict[str, int]:
    """Requests per histogram, from the last export of each resource."""
    found: dict[str, int] = {}
    for resource in resources:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if metric.name.endswith("request.duration"):
                    total = sum(point.count for point in metric.histogram.data_points)
                    found[metric.name] = max(found.get(metric.name, 0), total)
    return found


def test_ratio_agrees_with_the_sdk() -> None:
    """The same trace ids are sampled as by every other service with the standard sampler."""
    ratio = 0.25
    with traced_service({"sampling": {"sampler": "traceidratio", "arg": ratio}}) as (
        traced,
        service,
        _,
    ):
        sampler = TraceIdRatioBased(ratio)
        traces = [*ids(1000, 61), f"{'f' * 16}{'0' * 15}1", "1" + "f" * 31]
        bound = round(ratio * 2**64)
        traces += [f"{1 << 64 | bound + step:032x}" for step in (-1, 0, 1)]
        wanted = {}
        for trace in traces:
            decision = sampler.should_sample(None, int(trace, 16), "GET").decision
            wanted[trace] = decision is Decision.RECORD_AND_SAMPLE
            # independent of the caller's decision
            found = service.serve([request(trace, "00" if wanted[trace] else "01")], "/out")
            assert found.trace_id == trace
            assert found.flags == ("01" if wanted[trace] else "00"), trace
        sampled = {trace for trace, yes in wanted.items() if yes}
        assert 200 < len(sampled) < 300
        spans = traced.wait_spans(2 * len(sampled))
        assert len(spans) == 2 * len(sampled)
        assert {span.trace_id for span in spans} == sampled


def test_ratio_of_roots() -> None:
    """Roots get random ids, so about a quarter of them is sampled: flag and span agree."""
    sampler = {"sampler": "parentbased_traceidratio", "arg": 0.25}
    with traced_service({"sampling": sampler}) as (traced, service, _):
        found = [service.serve([request("", "")], "/out") for _ in range(1000)]
        sdk = TraceIdRatioBased(0.25)
        sampled = {one.trace_id for one in found if one.flags == "03"}
        assert {one.flags for one in found} == {"02", "03"}
        for one in found:
            decision = sdk.should_sample(None, int(one.trace_id, 16), "GET").decision
            assert (decision is Decision.RECORD_AND_SAMPLE) == (one.trace_id in sampled)
        assert 180 < len(sampled) < 320
        assert {s.trace_id for s in traced.wait_spans(2 * len(sampled))} == sampled
