from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from tests.fixtures.otlp_receivers import GrpcReceiver, HttpReceiver
from tests.fixtures.ports import free_port
from tests.fixtures.records import SHOP, record
from throughline.config import model as config
from throughline.config.model import OtlpTarget
from throughline.export import otlp
from throughline.export.outcome import Verdict
from throughline.telemetry.metrics import counter_metrics, metrics_data
from throughline.telemetry.spans import span


def target(endpoint: str, **environment: str) -> OtlpTarget:
    """As an operator gets it: through the standard variables."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    variables |= {f"OTEL_EXPORTER_OTLP_{name}": value for name, value in environment.items()}
    return config.load(config.DEFAULT_PATH, environment=variables).export.traces


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    with HttpReceiver() as found:
        yield found


@pytest.fixture
def grpc_receiver() -> Iterator[GrpcReceiver]:
    with GrpcReceiver() as found:
        yield found


def spans(count: int = 3) -> list[Any]:
    return [span(record(), SHOP) for _ in range(count)]


def test_http_sends_headers_and_gzip(receiver: HttpReceiver) -> None:
    sender = otlp.span_sender(
        target(receiver.endpoint, HEADERS="Api-Key=k%201", COMPRESSION="gzip")
    )
    assert sender.send(spans()).verdict is Verdict.ACCEPTED
    sender.close()
    assert len(receiver.spans()) == 3
    assert receiver.paths == ["/v1/traces"]
    assert receiver.headers[0]["api-key"] == "k 1"
    assert receiver.headers[0]["content-encoding"] == "gzip"


def test_grpc_sends_headers(grpc_receiver: GrpcReceiver) -> None:
    sender = otlp.span_sender(
        target(grpc_receiver.endpoint, PROTOCOL="grpc", HEADERS="api-key=k1", COMPRESSION="gzip")
    )
    assert sender.send(spans()).verdict is Verdict.ACCEPTED
    sender.close()
    assert len(grpc_receiver.spans()) == 3
    assert grpc_receiver.headers[0]["api-key"] == "k1"


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_metrics(protocol: str) -> None:
    with GrpcReceiver() if protocol == "grpc" else HttpReceiver() as receiver:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }
        found = config.load(config.DEFAULT_PATH, environment=variables).export.metrics
        sender = otlp.metric_sender(found)
        counters = {"throughline.skipped": {"pipelined": 3}}
        part = counter_metrics(counters, agent=SHOP, start_unix_ns=lambda _: 1, now_unix_ns=2)
        assert sender.send(metrics_data([part])).verdict is Verdict.ACCEPTED
        sender.close()
        metric = receiver.metrics[0].resource_metrics[0].scope_metrics[0].metrics[0]
        assert metric.name == "throughline.skipped"
        assert metric.sum.data_points[0].as_int == 3


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, Verdict.ACCEPTED),
        (202, Verdict.ACCEPTED),
        (302, Verdict.RETRY),
        (400, Verdict.REFUSED),
        (401, Verdict.RETRY),
        (403, Verdict.RETRY),
        (404, Verdict.RETRY),
        (413, Verdict.TOO_LARGE),
        (415, Verdict.REFUSED),
        (429, Verdict.RETRY),
        (500, Verdict.RETRY),
        (502, Verdict.RETRY),
        (503, Verdict.RETRY),
    ],
)
def test_http_status(receiver: HttpReceiver, status: int, verdict: Verdict) -> None:
    receiver.answers.append((status, {"Retry-After": "7", "Location": "/elsewhere"}, b""))
    sender = otlp.span_sender(target(receiver.endpoint))
    started = time.monotonic()
    outcome = sender.send(spans())
    assert time.monotonic() - started < 0.5, "the exporter must not retry by itself"
    sender.close()
    assert outcome.verdict is verdict
    if verdict is Verdict.RETRY:
        assert outcome.detail.startswith(f"HTTP {status}")
        assert outcome.retry_after == 7
    assert len(receiver.paths) == 1


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("INVALID_ARGUMENT", Verdict.REFUSED),
        ("UNAVAILABLE", Verdict.RETRY),
        ("UNAUTHENTICATED", Verdict.RETRY),
        ("RESOURCE_EXHAUSTED", Verdict.RETRY),
        ("INTERNAL", Verdict.RETRY),
    ],
)
def test_grpc_code(grpc_receiver: GrpcReceiver, code: str, verdict: Verdict) -> None:
    grpc_receiver.code = code
    sender = otlp.span_sender(target(grpc_receiver.endpoint, PROTOCOL="grpc"))
    for _ in range(2):  # the exporter hides repeated log records unless told otherwise
        started = time.monotonic()
        outcome = sender.send(spans())
        assert time.monotonic() - started < 0.9, "the exporter must not retry by itself"
        assert outcome.verdict is verdict
        assert code in outcome.detail
    grpc_receiver.code = None
    assert sender.send(spans()).verdict is Verdict.ACCEPTED
    sender.close()


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_nobody_listens(protocol: str) -> None:
    records: list[logging.LogRecord] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    listener = Listener()
    logging.getLogger().addHandler(listener)
    sender = otlp.span_sender(target(f"http://127.0.0.1:{free_port()}", PROTOCOL=protocol))
    started = time.monotonic()
    outcome = sender.send(spans())
    logging.getLogger().removeHandler(listener)
    assert time.monotonic() - started < 2
    sender.close()
    assert outcome.verdict is Verdict.RETRY
    assert "refused" in outcome.detail
    assert not [record for record in records if record.levelno >= logging.WARNING]


def test_a_receiver_that_hangs_costs_the_timeout_once(receiver: HttpReceiver) -> None:
    receiver.delay = 3
    sender = otlp.span_sender(target(receiver.endpoint, TIMEOUT="300"))
    started = time.monotonic()
    outcome = sender.send(spans())
    assert time.monotonic() - started < 1
    sender.close()
    assert outcome.verdict is Verdict.RETRY
    assert "timed out" in outcome.detail


def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    """The receiver answers, then closes at once on the second request of the connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    answered = 0

    def serve() -> None:
        nonlocal answered
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                data = b""
                while b"\r\n\r\n" not in data:
                    data += connection.recv(65536)
                head, _, body = data.partition(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                while len(body) < length:
                    body += connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                answered += 1
                connection.recv(1)  # the next request begins, and the connection is closed

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    sender = otlp.span_sender(target(f"http://127.0.0.1:{listener.getsockname()[1]}"))
    assert sender.send(spans()).verdict is Verdict.ACCEPTED
    assert sender.send(spans()).verdict is Verdict.ACCEPTED
    sender.close()
    thread.join(10)
    assert answered == 2
    listener.close()


def test_partial_success_is_told(receiver: HttpReceiver) -> None:
    partial = ExportTracePartialSuccess(rejected_spans=2, error_message="too old")
    body = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
    receiver.answers.append((200, {}, body))
    sender = otlp.span_sender(target(receiver.endpoint))
    outcome = sender.send(spans())
    sender.close()
    assert (outcome.verdict, outcome.rejected, outcome.detail) == (Verdict.ACCEPTED, 2, "too old")


def test_grpc_is_not_loaded_for_http(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "from throughline.config import model as config\n"
        "from throughline.export import otlp\n"
        "export = config.load(config.DEFAULT_PATH, environment={}).export\n"
        "otlp.span_sender(export.traces); otlp.metric_sender(export.metrics)\n"
        "assert 'grpc' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
