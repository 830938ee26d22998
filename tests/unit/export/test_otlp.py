from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from tests.fixtures.otlp_receivers import GrpcReceiver, HttpReceiver
from tests.fixtures.ports import free_port
from tests.fixtures.records import SHOP, request
from throughline import __version__
from throughline.config.model import DEFAULT_PATH, OtlpTarget, load
from throughline.export import answers, otlp
from throughline.export.outcome import ACCEPTED, Verdict
from throughline.telemetry import metrics
from throughline.telemetry.totals import Totals


def target(endpoint: str, **environment: str) -> OtlpTarget:
    """As an operator gets it: through the standard variables."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    variables |= {f"OTEL_EXPORTER_OTLP_{name}": value for name, value in environment.items()}
    return load(DEFAULT_PATH, environment=variables).export.traces


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    with HttpReceiver() as found:
        yield found


@pytest.fixture
def grpc_receiver() -> Iterator[GrpcReceiver]:
    with GrpcReceiver() as found:
        yield found


def test_http_sends_headers_and_gzip(receiver: HttpReceiver) -> None:
    sender = otlp.span_sender(
        target(receiver.endpoint, HEADERS="Api-Key=k%201", COMPRESSION="gzip")
    )
    assert sender.send(request(3)).verdict is Verdict.ACCEPTED
    sender.close()
    assert len(receiver.spans()) == 3
    assert receiver.paths == ["/v1/traces"]
    assert receiver.headers[0]["api-key"] == "k 1"
    assert receiver.headers[0]["content-encoding"] == "gzip"
    assert receiver.headers[0]["content-type"] == "application/x-protobuf"
    assert receiver.headers[0]["user-agent"] == f"throughline-OTLP-Exporter-Python/{__version__}"
    assert receiver.headers[0]["traceparent"].endswith("-00"), "a traced Collector adds no span"


def test_grpc_sends_headers(grpc_receiver: GrpcReceiver) -> None:
    sender = otlp.span_sender(
        target(grpc_receiver.endpoint, PROTOCOL="grpc", HEADERS="Api-Key=k1", COMPRESSION="gzip")
    )
    assert sender.send(request(3)).verdict is Verdict.ACCEPTED
    sender.close()
    assert len(grpc_receiver.spans()) == 3
    assert grpc_receiver.headers[0]["api-key"] == "k1"
    agent = grpc_receiver.headers[0]["user-agent"]
    assert agent.startswith(f"throughline-OTLP-Exporter-Python/{__version__} grpc-python/")


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_metrics(protocol: str) -> None:
    with GrpcReceiver() if protocol == "grpc" else HttpReceiver() as receiver:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }
        found = load(DEFAULT_PATH, environment=variables).export.metrics
        sender = otlp.metric_sender(found)
        totals = Totals((), {"pipelined": 3}, SHOP, 1, 1, 2)
        assert sender.send(metrics.encode(totals)).verdict is Verdict.ACCEPTED
        sender.close()
        metric = receiver.metrics[0].resource_metrics[0].scope_metrics[0].metrics[0]
        assert metric.name == "throughline.events"
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
        (504, Verdict.RETRY),
    ],
)
def test_http_status(receiver: HttpReceiver, status: int, verdict: Verdict) -> None:
    receiver.answers.append((status, {"Retry-After": "7", "Location": "/elsewhere"}, b""))
    sender = otlp.span_sender(target(receiver.endpoint))
    started = time.monotonic()
    outcome = sender.send(request(3))
    assert time.monotonic() - started < 0.5, "an attempt is one request"
    sender.close()
    assert outcome.verdict is verdict
    if verdict is Verdict.RETRY:
        assert outcome.detail.startswith(f"HTTP {status}")
        assert outcome.retry_after == 7
        assert outcome.suspicious == (status == 500)
    assert len(receiver.paths) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        ("", 0),
        ("-3", 0),
        ("soon", 0),
        ("²", 0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
        ("Sun, 99 Nov 99999 08:49:37 GMT", 0),
    ],
)
def test_retry_after(value: str, seconds: int) -> None:
    """A number of seconds; a date in the past is now."""
    assert answers.of_http(503, "", {"Retry-After": value}, b"").retry_after == seconds


def test_retry_after_a_date() -> None:
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60), usegmt=True)
    outcome = answers.of_http(503, "", {"Retry-After": date}, b"")
    assert 50 <= outcome.retry_after <= 60


@pytest.mark.parametrize(
    ("code", "verdict", "suspicious"),
    [
        # what the OTLP specification calls retryable
        ("CANCELLED", Verdict.RETRY, False),
        ("DEADLINE_EXCEEDED", Verdict.RETRY, False),
        ("ABORTED", Verdict.RETRY, False),
        ("OUT_OF_RANGE", Verdict.RETRY, False),
        ("UNAVAILABLE", Verdict.RETRY, False),
        ("DATA_LOSS", Verdict.RETRY, False),
        # what the operator puts right
        ("UNAUTHENTICATED", Verdict.RETRY, False),
        ("PERMISSION_DENIED", Verdict.RETRY, False),
        ("UNIMPLEMENTED", Verdict.RETRY, False),
        ("NOT_FOUND", Verdict.RETRY, False),
        # where the batch may be to blame: others go first
        ("RESOURCE_EXHAUSTED", Verdict.RETRY, True),
        ("INTERNAL", Verdict.RETRY, True),
        ("UNKNOWN", Verdict.RETRY, True),
        ("FAILED_PRECONDITION", Verdict.RETRY, True),
        ("ALREADY_EXISTS", Verdict.RETRY, True),
        ("INVALID_ARGUMENT", Verdict.REFUSED, False),
    ],
)
def test_grpc_code(
    grpc_receiver: GrpcReceiver, code: str, verdict: Verdict, suspicious: bool
) -> None:
    grpc_receiver.code = code
    sender = otlp.span_sender(target(grpc_receiver.endpoint, PROTOCOL="grpc"))
    for _ in range(2):
        started = time.monotonic()
        outcome = sender.send(request(3))
        assert time.monotonic() - started < 0.9, "an attempt is one call"
        assert (outcome.verdict, outcome.suspicious) == (verdict, suspicious)
        assert outcome.detail == f"gRPC {code}: as the test asked"
    assert len(grpc_receiver.headers) == 2
    grpc_receiver.code = None
    assert sender.send(request(3)).verdict is Verdict.ACCEPTED
    sender.close()


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAVAILABLE"])
@pytest.mark.parametrize("seconds", [0.0, 2.5])
def test_grpc_retry_info(grpc_receiver: GrpcReceiver, code: str, seconds: float) -> None:
    """With it a receiver says that it will recover, and when."""
    grpc_receiver.code, grpc_receiver.retry_delay = code, seconds
    sender = otlp.span_sender(target(grpc_receiver.endpoint, PROTOCOL="grpc"))
    outcome = sender.send(request(3))
    sender.close()
    assert (outcome.verdict, outcome.suspicious) == (Verdict.RETRY, False)
    assert outcome.retry_after == seconds


def test_grpc_message_that_is_too_large() -> None:
    """Judged by gRPC's own limit."""
    with GrpcReceiver(options=(("grpc.max_receive_message_length", 1000),)) as receiver:
        sender = otlp.span_sender(target(receiver.endpoint, PROTOCOL="grpc"))
        outcome = sender.send(request(100))
        assert outcome.verdict is Verdict.TOO_LARGE, outcome
        assert sender.send(request(1)).verdict is Verdict.ACCEPTED
        sender.close()


def test_grpc_keeps_its_connection_until_the_receiver_is_away(grpc_receiver: GrpcReceiver) -> None:
    sender = otlp.span_sender(target(grpc_receiver.endpoint, PROTOCOL="grpc"))
    for _ in range(3):
        sender.send(request())
    assert len(grpc_receiver.connections) == 1
    grpc_receiver.code = "UNAVAILABLE"
    sender.send(request())
    grpc_receiver.code = None
    sender.send(request())
    assert len(grpc_receiver.connections) == 2
    sender.close()


def test_http_keeps_its_connection(receiver: HttpReceiver) -> None:
    answer = ExportTraceServiceResponse().SerializeToString()
    sender = otlp.span_sender(target(receiver.endpoint))
    for status, body in ((200, answer), (200, b""), (503, b"x" * 1000), (429, b""), (200, b"x")):
        receiver.answers.append((status, {}, body))
        sender.send(request())
    assert len(receiver.connections) == 1
    receiver.answers.append((200, {}, b"x" * 200_000))
    assert sender.send(request()).verdict is Verdict.ACCEPTED, "only the beginning is read"
    assert sender.send(request()).verdict is Verdict.ACCEPTED
    sender.close()
    assert len(receiver.connections) == 2
    assert len(receiver.spans()) == 5


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
    outcome = sender.send(request(3))
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
    outcome = sender.send(request(3))
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
    assert sender.send(request(3)).verdict is Verdict.ACCEPTED
    assert sender.send(request(3)).verdict is Verdict.ACCEPTED
    sender.close()
    thread.join(10)
    assert answered == 2
    listener.close()


@pytest.mark.parametrize("signal", ["traces", "metrics"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_partial_success_is_told(protocol: str, signal: str) -> None:
    with GrpcReceiver() if protocol == "grpc" else HttpReceiver() as receiver:
        if isinstance(receiver, GrpcReceiver):
            receiver.rejected = 2
        else:
            partial = ExportTracePartialSuccess(rejected_spans=2, error_message="too old")
            body = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
            receiver.answers.append((200, {}, body))
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }
        export = load(DEFAULT_PATH, environment=variables).export
        if signal == "traces":
            sender = otlp.span_sender(export.traces)
            outcome = sender.send(request(3))
        else:
            sender = otlp.metric_sender(export.metrics)
            outcome = sender.send(metrics.encode(Totals((), {"a": 1}, SHOP, 1, 1, 2)))
        sender.close()
    assert (outcome.verdict, outcome.rejected, outcome.detail) == (Verdict.ACCEPTED, 2, "too old")


@pytest.mark.parametrize("body", [b"", b"\xff", b"\x0a\x00", b"<html>", b"\x0a\x02\x08\xff"])
def test_an_accepted_request_with_an_odd_answer_is_accepted(body: bytes) -> None:
    """Also a proxy's, and one whose count is negative."""
    for headers in ({"Content-Type": "application/x-protobuf"}, {"Content-Type": "text/html"}, {}):
        assert answers.of_http(200, "OK", headers, body) == ACCEPTED
    negative = ExportTracePartialSuccess(rejected_spans=-1, error_message="a warning")
    response = ExportTraceServiceResponse(partial_success=negative)
    assert answers.of_response(response.SerializeToString()) == ACCEPTED


def test_grpc_is_not_loaded_for_http(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "from throughline.config.model import DEFAULT_PATH, load\n"
        "from throughline.export import otlp\n"
        "export = load(DEFAULT_PATH, environment={}).export\n"
        "otlp.span_sender(export.traces); otlp.metric_sender(export.metrics)\n"
        "assert 'grpc' not in sys.modules\n"
        "assert not any(name.startswith('opentelemetry.sdk') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
