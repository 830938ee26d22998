"""Debian's Go programs work the same with the agent and without."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.certificate import make_certificate
from tests.fixtures.go import debian
from tests.fixtures.go.build import build
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.spans import Span
from tests.fixtures.traced import Traced

REQUESTS = 1000
SCRAPES = 5


@pytest.fixture(params=[False, True], ids=["alone", "traced"])
def traced(request: pytest.FixtureRequest) -> Iterator[Traced]:
    with Traced(start=request.param) as found:
        yield found


def load(url: str, *more: str) -> dict[str, object]:
    """Sends requests that the service behind the proxy answers, and checks every answer."""
    command = [str(build("chain/client")), f"-url={url}", "-path=/answer", *more]
    command += [f"-requests={REQUESTS}", "-concurrent=64"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    print(done.stdout)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def served(traced: Traced, service: str, count: int) -> list[Span]:
    """The server spans of a service, once there are that many."""
    return traced.wait_spans(count, where=lambda s: (s.service, s.kind) == (service, "SERVER"))


def test_prometheus_scrapes_node_exporter(traced: Traced) -> None:
    prometheus = debian.start_prometheus(traced)
    assert prometheus.wait_scrapes(SCRAPES) >= SCRAPES
    assert prometheus.query('min_over_time(up{job="node"}[5m])')[0]["value"][1] == "1"
    if traced.agent is None:
        return
    spans = served(traced, "node-exporter", SCRAPES)
    calls = {span.span_id: span for span in traced.receiver.spans if span.kind == "CLIENT"}
    assert len(spans) >= SCRAPES
    for span in spans:
        call = calls[span.parent_span_id]
        assert (call.service, call.path, span.path) == ("prometheus", "/metrics", "/metrics")
        assert call.trace_id == span.trace_id


def start_caddy(traced: Traced) -> debian.Caddy:
    """Caddy before a service of ours, `back`."""
    back = free_port()
    traced.spawn("back", [str(build("chain/server")), f"-listen=127.0.0.1:{back}"])
    wait_port(back)
    return debian.start_caddy(traced, onward=back)


def load_caddy(caddy: debian.Caddy, how: str) -> None:
    if how == "http/1.1":
        result = load(f"http://127.0.0.1:{caddy.port}")
    else:
        http2 = ["-http2"] if how == "https/2" else []
        result = load(f"https://127.0.0.1:{caddy.secure}", f"-ca={caddy.root}", *http2)
    assert (result["ok"], result["failed"]) == (REQUESTS, 0), result


@pytest.mark.parametrize("how", ["http/1.1", "https/1.1", "https/2"])
def test_caddy_passes_requests_on(traced: Traced, how: str) -> None:
    load_caddy(start_caddy(traced), how)
    if traced.agent is None:
        return
    spans = served(traced, "back", REQUESTS)
    calls = {span.span_id: span for span in traced.receiver.spans if span.kind == "CLIENT"}
    assert len(spans) == REQUESTS
    assert {calls[span.parent_span_id].service for span in spans} == {"caddy"}
    assert all(calls[span.parent_span_id].path == span.path for span in spans)


@pytest.mark.parametrize("secure", [False, True], ids=["plaintext", "tls"])
def test_etcd_answers_etcdctl(traced: Traced, secure: bool) -> None:
    certificate: Path | None = make_certificate(traced.directory) if secure else None
    etcd = debian.start_etcd(traced, certificate=certificate)
    for turn in range(3):
        assert etcd.ctl("put", f"key{turn}", f"value{turn}").strip() == "OK"
    assert etcd.ctl("get", "--print-value-only", "--prefix", "key").split() == [
        f"value{turn}" for turn in range(3)
    ]


@pytest.mark.parametrize("how", ["http/1.1", "https/2"])
def test_what_caddy_calls_has_its_request_for_a_parent(how: str) -> None:
    with Traced() as traced:
        load_caddy(start_caddy(traced), how)
        requests = {span.span_id: span for span in served(traced, "caddy", REQUESTS)}
        calls = [span for span in traced.receiver.spans if span.kind == "CLIENT"]
        assert len(calls) == REQUESTS
        assert all(requests[span.parent_span_id].path == span.path for span in calls)


@pytest.mark.parametrize("secure", [False, True], ids=["plaintext", "tls"])
def test_etcd_has_spans(secure: bool) -> None:
    with Traced() as traced:
        certificate = make_certificate(traced.directory) if secure else None
        etcd = debian.start_etcd(traced, certificate=certificate)
        traced.wait_followed(Path(debian.program("etcd")))
        etcd.ctl("put", "key", "value")
        # with TLS its gRPC is a handler of net/http, so that the span is one of HTTP/2
        names = [span.path or f"/{span.name}" for span in served(traced, "etcd", 1)]
        assert names == ["/etcdserverpb.KV/Put"]
