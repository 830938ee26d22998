"""The way from a finished span to the Collector, with a real receiver that comes and goes."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.otlp_receivers import GrpcReceiver, HttpReceiver
from tests.fixtures.ports import free_port
from tests.fixtures.records import SHOP, START, batch, raw, record
from throughline.config.model import DEFAULT_PATH, load
from throughline.export import outcome, pipeline
from throughline.export.pipeline import Pipeline
from throughline.telemetry.totals import Totals


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "LINGER_SECONDS", 0.05)
    monkeypatch.setattr(pipeline, "BACKOFF_SECONDS", (0.1, 0.3))


def start(endpoint: str, spool: Path, **variables: str) -> Pipeline:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "THROUGHLINE_SPOOL_DIRECTORY": str(spool),
        **variables,
    }
    found = Pipeline(load(DEFAULT_PATH, environment=environment).export)
    found.start()
    return found


def until(condition: Callable[[], bool], *, timeout: float = 10.0) -> bool:
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def order(receiver: HttpReceiver | GrpcReceiver) -> list[int]:
    return [span.start_time_unix_nano - START for span in receiver.spans()]


def submit_until_refused(exporter: Pipeline, spans: int) -> int:
    """Submits a span at a time until so many earlier ones were dropped; returns how many."""
    sent = 0

    def dropped() -> bool:
        nonlocal sent
        exporter.submit([(raw(record(start_unix_ns=START + sent)), SHOP)])
        sent += 1
        time.sleep(0.05)
        return exporter.status().dropped == {"refused": spans}

    assert until(dropped)
    return sent


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_all_spans_arrive_once(tmp_path: Path, protocol: str) -> None:
    with GrpcReceiver() if protocol == "grpc" else HttpReceiver() as receiver:
        exporter = start(receiver.endpoint, tmp_path, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
        exporter.submit(batch(1523))
        receiver.wait_for_spans(1523)
        exporter.submit([(raw(record(start_unix_ns=START + 1523)), SHOP)])
        receiver.wait_for_spans(1524)
        exporter.close()
        assert order(receiver) == list(range(1524))
        status = exporter.status()
        assert (status.state, status.exported_spans, status.failed_batches) == ("up", 1524, 0)
        assert status.dropped == {}
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_collector_away_and_back(tmp_path: Path, protocol: str) -> None:
    port = free_port()
    exporter = start(f"http://127.0.0.1:{port}", tmp_path, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    for number in range(23):
        exporter.submit([(raw(record(start_unix_ns=START + number)), SHOP)])
        time.sleep(0.02)
    assert until(lambda: exporter.status().spool_batches > 1)
    assert until(lambda: exporter.status().queued_spans == 0)
    assert exporter.status().state == "down"
    assert "refused" in exporter.status().last_error
    with GrpcReceiver(port) if protocol == "grpc" else HttpReceiver(port) as receiver:
        receiver.wait_for_spans(23)
        assert order(receiver) == list(range(23)), "oldest first"
        assert until(lambda: exporter.status().state == "up")
        assert until(lambda: exporter.status().spool_batches == 0)
        exporter.close()
        assert exporter.status().dropped == {}
        assert exporter.status().exported_spans == 23


def test_the_spool_survives_a_restart_of_the_agent(tmp_path: Path) -> None:
    port = free_port()
    exporter = start(f"http://127.0.0.1:{port}", tmp_path)
    exporter.submit(batch(1000))
    started = time.monotonic()
    exporter.close()
    assert time.monotonic() - started < 3
    assert exporter.status().spool_batches > 0
    with HttpReceiver(port) as receiver:
        again = start(receiver.endpoint, tmp_path)
        receiver.wait_for_spans(1000)
        again.close()
        assert sorted(order(receiver)) == list(range(1000))


def test_fresh_batches_do_not_wait_for_a_long_spool(tmp_path: Path) -> None:
    port = free_port()
    exporter = start(f"http://127.0.0.1:{port}", tmp_path)
    for _ in range(20):
        exporter.submit(batch(pipeline.BATCH_SPANS))
        time.sleep(0.01)
    assert until(lambda: exporter.status().spool_batches >= 20)
    with HttpReceiver(port) as receiver:
        receiver.delay = 0.05
        assert until(lambda: len(receiver.traces) > 1)
        exporter.submit([(raw(record(start_unix_ns=START + 10**6)), SHOP)])
        every = 20 * pipeline.BATCH_SPANS + 1
        assert until(lambda: exporter.status().exported_spans == every, timeout=30.0)
        exporter.close()
        found = order(receiver)
    assert found.index(10**6) < len(found) - 5 * pipeline.BATCH_SPANS


def test_a_refused_batch_is_not_sent_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with HttpReceiver() as receiver:
        receiver.answers.append((400, {}, b""))
        exporter = start(receiver.endpoint, tmp_path)
        exporter.submit(batch(3))
        assert until(lambda: exporter.status().dropped == {"refused": 3})
        exporter.submit(batch(2))
        receiver.wait_for_spans(2)
        exporter.close()
        assert len(receiver.paths) == 2
        assert (exporter.status().spool_batches, exporter.status().state) == (0, "up")
    assert "HTTP 400" in caplog.text


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_a_batch_waits_for_a_receiver_that_answers_with_errors(
    tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with HttpReceiver() as receiver, caplog.at_level(logging.INFO, logger="throughline"):
        receiver.always = status
        exporter = start(receiver.endpoint, tmp_path)
        exporter.submit(batch(3))
        assert until(lambda: exporter.status().failed_batches >= 3)
        assert exporter.status().last_error.startswith(f"HTTP {status}")
        receiver.always = None
        assert len(receiver.wait_for_spans(3)) == 3
        assert until(lambda: exporter.status().state == "up")
        exporter.close()
    said = [record for record in caplog.records if record.name.startswith("throughline")]
    assert [record.levelname for record in said] == ["WARNING", "INFO"], "one line for each change"


def test_retry_after_is_honoured(tmp_path: Path) -> None:
    with HttpReceiver() as receiver:
        receiver.answers.append((429, {"Retry-After": "1"}, b""))
        exporter = start(receiver.endpoint, tmp_path)
        exporter.submit(batch(1))
        assert until(lambda: len(receiver.paths) == 1)
        refused_at = time.monotonic()
        receiver.wait_for_spans(1)
        assert time.monotonic() - refused_at >= 0.9
        exporter.close()


def test_a_batch_that_is_too_large_is_cut(tmp_path: Path) -> None:
    with HttpReceiver() as receiver:
        receiver.largest = 5000
        exporter = start(receiver.endpoint, tmp_path)
        long = [(record(tracestate="a=" + "x" * 255, target="/" + "y" * 5000), SHOP)]
        exporter.submit([*batch(100), *long])
        receiver.wait_for_spans(100)
        assert until(lambda: exporter.status().exported_spans == 100)
        exporter.close()
        assert exporter.status().dropped == {"rejected": 1}
        assert len(receiver.spans()) == 100


def test_a_batch_that_breaks_the_receiver_does_not_stop_the_others(tmp_path: Path) -> None:
    with HttpReceiver() as receiver:
        receiver.poison = b"/poison"
        exporter = start(receiver.endpoint, tmp_path)
        exporter.submit([(raw(record(target="/poison")), SHOP)])
        assert until(lambda: exporter.status().state == "down")
        exporter.submit([(raw(record(target="/poison")), SHOP)])
        assert until(lambda: exporter.status().spool_batches == 2)
        sent = submit_until_refused(exporter, 2)
        receiver.wait_for_spans(sent)
        assert sorted(order(receiver)) == list(range(sent))
        assert until(lambda: exporter.status().spool_batches == 0)
        exporter.close()
        assert exporter.status().dropped == {"refused": 2}


def test_overflow_of_the_spool_drops_the_oldest(tmp_path: Path) -> None:
    exporter = start(f"http://127.0.0.1:{free_port()}", tmp_path)
    exporter._spool.max_bytes = 200_000
    for number in range(10):
        exporter.submit(batch(pipeline.BATCH_SPANS))
        assert until(
            lambda at=number: (
                exporter.status().queued_spans == 0  # type: ignore[misc]
                and exporter.status().spool_batches + at >= at
            )
        )
    exporter.close()
    status = exporter.status()
    kept = status.spool_batches * pipeline.BATCH_SPANS
    assert status.spool_bytes <= 200_000
    assert kept > 0
    assert status.dropped == {"spool_overflow": 10 * pipeline.BATCH_SPANS - kept}


def test_a_disk_that_refuses_loses_nothing_while_memory_lasts(tmp_path: Path) -> None:
    port = free_port()
    exporter = start(f"http://127.0.0.1:{port}", tmp_path)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        exporter.submit(batch(1000))
        assert until(lambda: "File too large" in exporter.status().last_error)
        time.sleep(0.3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert exporter.status().dropped == {}
    with HttpReceiver(port) as receiver:
        receiver.wait_for_spans(1000)
        exporter.close()
        assert sorted(order(receiver)) == list(range(1000))


def test_memory_is_bounded_when_neither_disk_nor_receiver_takes_spans(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    exporter = start(f"http://127.0.0.1:{free_port()}", tmp_path / "file" / "spool")
    for _ in range(40):
        exporter.submit(batch(pipeline.BATCH_SPANS))
    total = 40 * pipeline.BATCH_SPANS
    assert exporter.status().queued_spans <= pipeline.QUEUE_SPANS + pipeline.BATCH_SPANS
    exporter.close()
    assert sum(exporter.status().dropped.values()) == total
    assert "Not a directory" in exporter.status().last_error


def test_a_receiver_that_hangs_holds_up_neither_the_loop_nor_the_end(tmp_path: Path) -> None:
    with HttpReceiver() as receiver:
        receiver.delay = 5
        exporter = start(receiver.endpoint, tmp_path)
        exporter.submit(batch(pipeline.BATCH_SPANS))
        assert until(lambda: exporter.status().queued_spans > 0)
        slowest = 0.0
        for _ in range(40):
            fresh = batch(pipeline.BATCH_SPANS)
            started = time.monotonic()
            exporter.submit(fresh)
            slowest = max(slowest, time.monotonic() - started)
            time.sleep(0.05)
        assert slowest < 0.1
        started = time.monotonic()
        exporter.close(timeout=0.5)
        assert time.monotonic() - started < 2
        status = exporter.status()
        assert status.dropped == {}
        assert status.spool_batches == 41, "what was under way is kept too"


def test_close_sends_what_is_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "LINGER_SECONDS", 60)
    with HttpReceiver() as receiver:
        exporter = start(receiver.endpoint, tmp_path)
        exporter.submit(batch(23))
        exporter.close()
        assert order(receiver) == list(range(23))
    assert list(tmp_path.iterdir()) == []


def test_metrics_go_their_own_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A receiver without metrics (Jaeger answers 404) does not hold up the spans."""
    totals = Totals((), {"a": 1}, SHOP, 1, 1, 2)
    with HttpReceiver() as receiver:
        receiver.answers.append((404, {}, b""))
        exporter = start(receiver.endpoint, tmp_path)
        exporter.submit_metrics(totals)
        assert until(lambda: "HTTP 404" in exporter.status().last_error)
        exporter.submit(batch(3))
        assert len(receiver.wait_for_spans(3)) == 3
        exporter.submit_metrics(totals)
        assert until(lambda: len(receiver.metrics) == 1)
        exporter.close()


def test_a_defect_in_one_attempt_keeps_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate is missing when the thread starts, and is there later."""
    with GrpcReceiver() as receiver:
        certificate = tmp_path / "ca.pem"
        certificate.write_text("")
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint.replace("http:", "https:"),
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": str(certificate),
            "THROUGHLINE_SPOOL_DIRECTORY": str(tmp_path / "spool"),
        }
        export = load(DEFAULT_PATH, environment=environment).export
        certificate.unlink()
        exporter = Pipeline(export)
        exporter.start()
        exporter.submit(batch(3))
        assert until(lambda: "ca.pem" in exporter.status().last_error)
        assert until(lambda: exporter.status().spool_batches == 1)
        exporter.close()
        assert exporter.status().dropped == {}


def test_console_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exporter = start("http://127.0.0.1:1", tmp_path, OTEL_TRACES_EXPORTER="console")
    exporter.submit([(raw(record(target="/a\x1b[2J")), SHOP)])
    exporter.close()
    out = capsys.readouterr().out
    assert "Z SERVER shop GET /a\\x1b[2J 200 12.3ms trace=" in out
    assert exporter.status().state == "off"


def test_status_has_the_documented_keys(tmp_path: Path) -> None:
    exporter = start("http://127.0.0.1:1", tmp_path)
    found: dict[str, Any] = exporter.status().as_json()
    exporter.close()
    wanted = {"exported_spans", "failed_batches", "spool_bytes", "spool_batches"}
    assert wanted | {"dropped_spans", "last_error"} <= found.keys()
    assert outcome.Verdict.RETRY.value == "retry"


# one of which no span, no message, or no line of the spool can be made
POISON: dict[str, dict[str, Any]] = {
    "no span": {"trace_id": None},
    "no message": {"status": 1 << 70},
    "no line": {"method": b"GET"},
}


@pytest.mark.parametrize("kind", POISON)
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_one_bad_record_costs_only_itself(
    tmp_path: Path, protocol: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its batch went to the head of the spool and failed there for ever."""
    with GrpcReceiver() if protocol == "grpc" else HttpReceiver() as receiver:
        exporter = start(receiver.endpoint, tmp_path, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
        good = batch(10)
        exporter.submit([*good[:5], (record(**POISON[kind]), SHOP), *good[5:]])
        receiver.wait_for_spans(10)
        assert until(lambda: exporter.status().dropped == {"unconvertible": 1})
        exporter.submit(batch(10))
        receiver.wait_for_spans(20)
        exporter.close()
        status = exporter.status()
        assert (status.exported_spans, status.state, status.spool_batches) == (20, "up", 0)
        assert status.dropped == {"unconvertible": 1}
    assert "a span was dropped" in caplog.text


@pytest.mark.parametrize("kind", POISON)
def test_a_bad_record_in_the_spool_costs_only_itself(tmp_path: Path, kind: str) -> None:
    """Also one that an earlier run has left there, and while the Collector is away."""
    port = free_port()
    exporter = start(f"http://127.0.0.1:{port}", tmp_path)
    exporter.submit([(record(**POISON[kind]), SHOP), *batch(5)])
    assert until(lambda: exporter.status().spool_batches == 1)
    exporter.close()
    written = exporter.status().dropped.get("unconvertible", 0)
    with HttpReceiver(port) as receiver:
        again = start(receiver.endpoint, tmp_path)
        again.submit(batch(10))
        receiver.wait_for_spans(15)
        assert until(lambda: again.status().spool_batches == 0)
        again.close()
        assert again.status().exported_spans == 15
        assert written + again.status().dropped.get("unconvertible", 0) == 1


def test_a_batch_that_cannot_be_sent_does_not_stay_at_the_head_of_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason is: here the library fails for one target."""
    from throughline.export import otlp

    with HttpReceiver() as receiver:
        really = otlp.span_sender

        def failing(target: Any) -> outcome.Sender:
            sender = really(target)

            def send(body: bytes) -> outcome.Outcome:
                if b"/poison" in body:
                    raise RuntimeError("a fault of the library")
                return sender.send(body)

            return outcome.Sender(send, sender.close)

        monkeypatch.setattr(otlp, "span_sender", failing)
        exporter = start(receiver.endpoint, tmp_path)
        exporter.submit([(raw(record(target="/poison")), SHOP)])
        assert until(lambda: exporter.status().spool_batches == 1)
        sent = submit_until_refused(exporter, 1)
        receiver.wait_for_spans(sent)
        exporter.close()
        assert "a fault of the library" in exporter.status().last_error


def test_metrics_that_cannot_be_sent_hold_up_no_span(tmp_path: Path) -> None:
    bad = Totals((), {"a": 1 << 70}, SHOP, 1, 1, 2)
    with HttpReceiver() as receiver:
        exporter = start(receiver.endpoint, tmp_path)
        exporter.submit_metrics(bad)
        exporter.submit(batch(3))
        receiver.wait_for_spans(3)
        exporter.close()
        assert exporter.status().failed_batches == 0


def test_a_torn_file_is_counted_once(tmp_path: Path) -> None:
    """36 lost spans were reported as 108 after three attempts."""
    port = free_port()
    exporter = start(f"http://127.0.0.1:{port}", tmp_path)
    exporter.submit(batch(100))
    assert until(lambda: exporter.status().spool_batches == 1)
    exporter.close()
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    file.write_bytes(data[: int(0.6 * len(data))])
    again = start(f"http://127.0.0.1:{port}", tmp_path)
    assert until(lambda: again.status().failed_batches >= 3)
    lost = again.status().dropped["spool_torn"]
    with HttpReceiver(port) as receiver:
        receiver.wait_for_spans(100 - lost)
        again.close()
        assert again.status().dropped == {"spool_torn": lost}


def test_what_is_queued_goes_on_disk_whoever_closes_how_often(tmp_path: Path) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    variables["THROUGHLINE_SPOOL_DIRECTORY"] = str(tmp_path)
    exporter = Pipeline(load(DEFAULT_PATH, environment=variables).export)
    exporter.submit(batch(700))  # never started: the agent has failed before
    exporter.close()
    exporter.submit(batch(23))
    exporter.close()
    assert exporter.status().queued_spans == 0
    assert exporter.status().spool_batches == 3
    assert exporter.status().dropped == {}


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_token_is_not_told_whoever_repeats_it(
    tmp_path: Path, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The receiver does, or a library whose error holds all headers."""
    headers = "authorization=Bearer%20tok7345678,x-key=k7345678"
    with GrpcReceiver() if protocol == "grpc" else HttpReceiver() as receiver:
        exporter = start(
            receiver.endpoint,
            tmp_path,
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            OTEL_EXPORTER_OTLP_HEADERS=headers,
        )
        exporter._say("metrics: who is Bearer tok7345678 with 'k7345678'?")
        assert exporter.status().last_error == "metrics: who is (hidden) with '(hidden)'?"
        exporter._say("no such token: tok7345678")
        error = ValueError("metadata was invalid: [('x-key', 'k7345678')]")
        exporter._down(pipeline._failed(error))
        exporter.close()
    assert "7345678" not in caplog.text + exporter.status().last_error
    assert "(hidden)" in exporter.status().last_error
