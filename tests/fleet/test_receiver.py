"""The receiver and its waterfall, fed by OpenTelemetry's own exporter and seen by a browser."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from tests.fixtures import spans
from tests.fixtures.receiver import Receiver
from tests.fleet import tree, waterfall

CHAIN = ("shop-web", "shop-orders", "shop-stock", "shop-prices")
START = 1_700_000_000_000_000_000


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on a free port of the loopback."""
    with Receiver(socket.create_server(("127.0.0.1", 0))) as running:
        yield running


def send_chain(endpoint: str, *, compression: Compression, path: str = "/cart/42") -> None:
    """Exports one trace of four services, SERVER and CLIENT spans, the last one an error."""
    exporter = OTLPSpanExporter(f"{endpoint}/v1/traces", compression=compression)
    context = None
    for hop, service in enumerate(CHAIN):
        attributes = {"service.name": service, "host.name": f"demo{1 + hop * 2 // 3}"}
        provider = TracerProvider(resource=Resource(attributes), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = provider.get_tracer("test")
        last = hop == len(CHAIN) - 1
        for kind in (SpanKind.SERVER,) if last else (SpanKind.SERVER, SpanKind.CLIENT):
            inset = 400_000 * (2 * hop + (kind is SpanKind.CLIENT))
            span = tracer.start_span("GET", context, kind, start_time=START + inset)
            span.set_attribute("http.request.method", "GET")
            span.set_attribute("http.response.status_code", 500 if last else 200)
            evidence = "thread" if kind is SpanKind.CLIENT else ("header" if hop else "none")
            span.set_attribute("throughline.parent.evidence", evidence)
            if kind is SpanKind.SERVER:
                span.set_attribute("url.path", path)
            else:
                span.set_attribute("url.full", f"http://10.77.0.12:8080{path}")
            if last:
                span.set_status(Status(StatusCode.ERROR))
            context = trace.set_span_in_context(span)
            span.end(START + 9_300_000 - inset)


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_spans_of_a_real_exporter(receiver: Receiver, compression: Compression) -> None:
    send_chain(receiver.endpoint, compression=compression)
    assert receiver.wait(lambda received: len(received) >= 7, seconds=5)
    (received,) = spans.by_trace(receiver.spans).values()
    walked = [(span.service, span.kind, depth) for span, depth in spans.walk(received)]
    kinds = ("SERVER", "CLIENT") * 4
    assert walked == [(CHAIN[depth // 2], kinds[depth], depth) for depth in range(7)]
    assert {span.path for span in received} == {"/cart/42"}
    assert [span.status for span in received] == [200] * 6 + [500]
    assert received[-1].error
    assert received[0].milliseconds == pytest.approx(9.3)
    lines = tree.lines(received)
    assert len(lines) == 7
    assert "shop-prices" in lines[-1]
    assert "500" in lines[-1]


def test_metrics_of_a_real_exporter(receiver: Receiver) -> None:
    exporter = OTLPMetricExporter(f"{receiver.endpoint}/v1/metrics")
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=60_000)
    provider = MeterProvider([reader], resource=Resource({"service.name": "shop-web"}))
    provider.get_meter("test").create_histogram("http.server.request.duration").record(0.012)
    provider.shutdown()
    (metrics,) = receiver.metrics
    assert metrics.scope_metrics[0].metrics[0].name == "http.server.request.duration"


@pytest.mark.parametrize(
    ("path", "kind", "body", "status"),
    [
        ("/v1/traces", "application/json", b"{}", 415),
        ("/v1/traces", "application/x-protobuf", b"\xff\xff", 400),
        ("/v1/logs", "application/x-protobuf", b"", 404),
    ],
)
def test_refusals(receiver: Receiver, path: str, kind: str, body: bytes, status: int) -> None:
    request = urllib.request.Request(
        receiver.endpoint + path, body, {"Content-Type": kind}, method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=5)
    assert refused.value.code == status
    assert receiver.spans == []


def test_a_broken_collector(receiver: Receiver) -> None:
    receiver.refuse_with = 400
    send_chain(receiver.endpoint, compression=Compression.NoCompression)
    assert receiver.spans == []


@pytest.mark.parametrize(
    ("milliseconds", "labels"),
    [
        (9.3, ["0", "2 ms", "4 ms", "6 ms", "8 ms"]),
        (0.31, ["0", "100 µs", "200 µs", "300 µs"]),
        (2100.0, ["0", "500 ms", "1 s", "1.5 s", "2 s"]),
        (0.0, ["0"]),
    ],
)
def test_ticks_are_round(milliseconds: float, labels: list[str]) -> None:
    assert [label for _, label in waterfall.ticks(milliseconds)] == labels


def browser(*arguments: str, profile: Path) -> str:
    """Runs headless Chromium and returns what it printed."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    return subprocess.run(
        [
            chromium,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            f"--user-data-dir={profile}",
            *arguments,
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


# Runs in the page and leaves what it measured in the document, where --dump-dom shows it.
MEASURE = """
<script>
addEventListener("load", () => {
  const box = element => element.getBoundingClientRect();
  const rows = [...document.querySelector(".trace").querySelectorAll(".row")];
  const lane = box(rows[0].querySelector(".lane"));
  const measured = {
    open: document.querySelectorAll(".trace[open]").length,
    traces: document.querySelectorAll(".trace").length,
    names: rows.map(row => row.querySelector("b").textContent),
    parents: rows.map(row => row.dataset.parent),
    spans: rows.map(row => row.dataset.span),
    bars: rows.map(row => { const bar = box(row.querySelector(".bar"));
      return [(bar.left - lane.left) / lane.width, bar.width / lane.width]; }),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    loaded: performance.getEntriesByType("resource").map(entry => entry.name),
    scripts: document.querySelectorAll("img, b script").length,
    tall: rows.map(row => box(row.querySelector("summary")).height),
  };
  document.body.insertAdjacentHTML("beforeend", "<pre id=measured></pre>");
  document.getElementById("measured").textContent = btoa(JSON.stringify(measured));
});
</script>
"""


@pytest.mark.parametrize("width", [1280, 500])
def test_waterfall_in_chromium(receiver: Receiver, tmp_path: Path, width: int) -> None:
    send_chain(receiver.endpoint, compression=Compression.Gzip)
    hostile = "/<script>alert(1)</script><img src=x>" + "x" * 300
    send_chain(receiver.endpoint, compression=Compression.Gzip, path=hostile)
    page = waterfall.render(receiver.spans)
    assert "http://10.77.0.12:8080/cart/42" in page
    assert hostile not in page
    file = tmp_path / "trace.html"
    file.write_text(page.replace("</body>", f"{MEASURE}</body>"))
    dom = browser(
        f"--window-size={width},900", "--dump-dom", file.as_uri(), profile=tmp_path / "profile"
    )
    encoded = dom.partition('<pre id="measured">')[2].partition("</pre>")[0]

    seen = json.loads(base64.b64decode(encoded))
    assert (seen["open"], seen["traces"]) == (1, 2)
    assert seen["names"] == [CHAIN[index // 2] for index in range(7)]
    assert seen["parents"] == ["", *seen["spans"][:-1]]
    for index, (left, share) in enumerate(seen["bars"]):
        assert left == pytest.approx(0.4 * index / 9.3, abs=0.01)
        assert share == pytest.approx((9.3 - 0.8 * index) / 9.3, abs=0.01)
    assert seen["overflow"] <= 0, "the page scrolls sideways"
    assert seen["loaded"] == [], "the page loads something"
    assert seen["scripts"] == 0, "a path became markup"
    assert min(seen["tall"]) >= 24, "a row is too low to be pressed"
