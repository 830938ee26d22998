"""The OTLP exporters of OpenTelemetry, made to say what the receiver answered.

The exporters report success or failure only, and retry by themselves for as long as their timeout.
Here each attempt is one request: waiting and trying again is the pipeline's work, which has a
spool. For HTTP that is done with the `session` argument: an exception that the exporter does not
know as a connection error ends its retry loop. For gRPC `retryable_error_codes` ends the loop, and
the status code is read from the exporter's own log record.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import requests
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http import Compression, trace_exporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import (
    OTLPMetricExporter as HttpMetricExporter,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from throughline.config.model import OtlpTarget
from throughline.export import encoding
from throughline.export.outcome import ACCEPTED, Outcome, Verdict

# Only these blame the batch. 401, 403, 404 and the like are an operator's mistake that will be put
# right, so the batch waits in the spool (OTLP specification, "Failures", read conservatively).
_REFUSED_STATUS = frozenset((400, 415, 422))
_TOO_LARGE_STATUS = 413
_REFUSED_CODES = frozenset(("INVALID_ARGUMENT",))
_SUSPICIOUS_CODES = frozenset(("INTERNAL", "UNKNOWN"))
_GRPC_LOGGER = "opentelemetry.exporter.otlp.proto.grpc.exporter"


@dataclass(frozen=True, slots=True)
class Sender:
    """One signal's way out. Both calls block for at most the target's timeout, twice at worst.

    `send` raises what the exporter does for a batch that it cannot encode.
    """

    send: Callable[[Any], Outcome]
    close: Callable[[], None]


def is_encodable(span: ReadableSpan) -> bool:
    """Can the exporters make a message of one span?"""
    try:
        encoding.encode_spans([span], standard=encode_spans).SerializeToString()
    except Exception:  # whatever it is, this span is the reason
        return False
    return True


def span_sender(target: OtlpTarget) -> Sender:
    """Sends a sequence of ReadableSpan."""
    exporter, exchange = (_grpc_spans if target.protocol == "grpc" else _http_spans)(target)

    def send(spans: Sequence[ReadableSpan]) -> Outcome:
        exchange.begin()
        return exchange.outcome(ok=exporter.export(spans) is SpanExportResult.SUCCESS)

    def close() -> None:
        exporter.shutdown()
        exchange.close()

    return Sender(send, close)


def metric_sender(target: OtlpTarget) -> Sender:
    """Sends a MetricsData."""
    exporter, exchange = (_grpc_metrics if target.protocol == "grpc" else _http_metrics)(target)

    def send(data: MetricsData) -> Outcome:
        exchange.begin()
        return exchange.outcome(ok=exporter.export(data) is MetricExportResult.SUCCESS)

    def close() -> None:
        exporter.shutdown()
        exchange.close()

    return Sender(send, close)


class _Exchange(Protocol):
    """What is known of the request that the exporter made in its last call."""

    def begin(self) -> None: ...

    def outcome(self, *, ok: bool) -> Outcome: ...

    def close(self) -> None: ...


class _EndOfAttempt(Exception):  # noqa: N818
    """Raised into the HTTP exporter, which gives up at once on what it does not know."""


class _Session(requests.Session):
    """A session that keeps the receiver's answer and leaves no failure to the exporter's loop."""

    def __init__(self) -> None:
        super().__init__()
        self._last: Outcome | None = None

    def begin(self) -> None:
        self._last = None

    def outcome(self, *, ok: bool) -> Outcome:
        if self._last is None:  # no request was made
            if not ok:
                raise ValueError("the exporter could not encode the batch")
            return ACCEPTED
        return self._last

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        # The configured CA, which requests would replace by $REQUESTS_CA_BUNDLE.
        kwargs.setdefault("verify", self.verify)
        try:
            response = self._request_fresh(*args, **kwargs)
        except (requests.RequestException, OSError) as error:
            self._last = Outcome(Verdict.RETRY, _reason(error))
            raise _EndOfAttempt from error
        self._last = _http_outcome(response)
        if self._last.verdict is not Verdict.ACCEPTED:
            raise _EndOfAttempt
        return response

    def _request_fresh(self, *args: Any, **kwargs: Any) -> requests.Response:
        try:
            return super().request(*args, **kwargs)
        except requests.Timeout:
            raise
        except requests.ConnectionError as error:
            # A kept-alive connection that the receiver closed as we wrote: once more, on a new one.
            if "Connection aborted" in str(error) or "RemoteDisconnected" in str(error):
                return super().request(*args, **kwargs)
            raise


def _http_outcome(response: requests.Response) -> Outcome:
    status = response.status_code
    if 200 <= status < 300:
        return _partial_success(response)
    detail = f"HTTP {status} {response.reason or ''}".rstrip()
    if status == _TOO_LARGE_STATUS:
        return Outcome(Verdict.TOO_LARGE, detail)
    if status in _REFUSED_STATUS:
        return Outcome(Verdict.REFUSED, detail)
    wait = response.headers.get("Retry-After", "")
    return Outcome(
        Verdict.RETRY,
        detail,
        retry_after=float(wait) if wait.isdecimal() else 0.0,
        suspicious=status == 500,
    )


def _partial_success(response: requests.Response) -> Outcome:
    """The same two fields stand in the answers for spans and for metrics."""
    if not response.content or "protobuf" not in response.headers.get("Content-Type", ""):
        return ACCEPTED
    try:
        partial = ExportTraceServiceResponse.FromString(response.content).partial_success
    except Exception:  # protobuf's DecodeError has no public home; the batch was accepted anyway
        return ACCEPTED
    if not partial.rejected_spans:
        return ACCEPTED
    return Outcome(
        Verdict.ACCEPTED,
        partial.error_message or "no reason given",
        rejected=partial.rejected_spans,
    )


def _reason(error: BaseException) -> str:
    """The innermost cause, which is the one that a person can act on."""
    seen: BaseException = error
    while True:
        inner = getattr(seen, "reason", None) or seen.__cause__ or seen.__context__
        if not isinstance(inner, BaseException) or inner is seen:
            break
        seen = inner
    strerror = getattr(seen, "strerror", None)
    text = strerror if isinstance(strerror, str) else str(seen)
    return f"{type(seen).__name__}: {text}" if text else type(seen).__name__


def _headers(target: OtlpTarget) -> dict[str, str]:
    """The configured headers, and an unsampled trace context of our own.

    A Collector that is traced itself would answer each export with a span, which makes an export.
    """
    context = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"
    return {"traceparent": context, **target.headers}


def _http_arguments(target: OtlpTarget, session: _Session) -> dict[str, Any]:
    return {
        "endpoint": target.endpoint,
        "certificate_file": _text(target.certificate),
        "client_key_file": _text(target.client_key),
        "client_certificate_file": _text(target.client_certificate),
        "headers": _headers(target),
        "timeout": target.timeout,
        "compression": Compression.Gzip
        if target.compression == "gzip"
        else Compression.NoCompression,
        "session": session,
    }


def _http_spans(target: OtlpTarget) -> tuple[Any, _Exchange]:
    _silence()
    encoding.install(trace_exporter)
    session = _Session()
    return trace_exporter.OTLPSpanExporter(**_http_arguments(target, session)), session


def _http_metrics(target: OtlpTarget) -> tuple[Any, _Exchange]:
    _silence()
    session = _Session()
    return HttpMetricExporter(**_http_arguments(target, session)), session


class _GrpcLog(logging.Handler):
    """Reads the gRPC status code out of the log record which the exporter makes when it fails."""

    def __init__(self, status_code: type) -> None:
        super().__init__(logging.WARNING)
        self._status_code = status_code
        self._logger = logging.getLogger(_GRPC_LOGGER)
        for duplicates in tuple(self._logger.filters):  # takes two codes for one
            self._logger.removeFilter(duplicates)
        self._logger.addHandler(self)
        self.begin()

    def emit(self, record: logging.LogRecord) -> None:
        arguments = record.args if isinstance(record.args, tuple) else ()
        for argument, following in zip(arguments, (*arguments[1:], ""), strict=True):
            if isinstance(argument, self._status_code):
                self._code = argument.name  # type: ignore[attr-defined]
                self._detail = str(following)

    def begin(self) -> None:
        self._code = "UNKNOWN"
        self._detail = ""

    def close(self) -> None:
        self._logger.removeHandler(self)
        super().close()

    def outcome(self, *, ok: bool) -> Outcome:
        if ok:
            return ACCEPTED
        detail = f"gRPC {self._code}: {self._detail}".rstrip(": ")
        if self._code in _REFUSED_CODES:
            return Outcome(Verdict.REFUSED, detail)
        if self._code == "RESOURCE_EXHAUSTED" and "larger than max" in self._detail:
            return Outcome(Verdict.TOO_LARGE, detail)
        return Outcome(Verdict.RETRY, detail, suspicious=self._code in _SUSPICIOUS_CODES)


def _grpc_arguments(target: OtlpTarget) -> tuple[dict[str, Any], _GrpcLog]:
    import grpc  # 10 MB resident: only for those who chose it

    credentials = None
    if not target.insecure:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=target.certificate.read_bytes() if target.certificate else None,
            private_key=target.client_key.read_bytes() if target.client_key else None,
            certificate_chain=target.client_certificate.read_bytes()
            if target.client_certificate
            else None,
        )
    _silence()
    log = _GrpcLog(grpc.StatusCode)
    arguments = {
        "endpoint": target.endpoint,
        "insecure": target.insecure,
        "credentials": credentials,
        "headers": _headers(target),
        "timeout": target.timeout,
        "compression": grpc.Compression.Gzip
        if target.compression == "gzip"
        else grpc.Compression.NoCompression,
        "retryable_error_codes": [grpc.StatusCode.OK],  # none: an error never has this code
    }
    return arguments, log


def _grpc_spans(target: OtlpTarget) -> tuple[Any, _Exchange]:
    from opentelemetry.exporter.otlp.proto.grpc import trace_exporter

    encoding.install(trace_exporter)
    arguments, log = _grpc_arguments(target)
    return trace_exporter.OTLPSpanExporter(**arguments), log


def _grpc_metrics(target: OtlpTarget) -> tuple[Any, _Exchange]:
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

    arguments, log = _grpc_arguments(target)
    return OTLPMetricExporter(**arguments), log


def _silence() -> None:
    """The exporters log each failure; the pipeline says it once for each change of state."""
    logger = logging.getLogger("opentelemetry.exporter.otlp")
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def _text(path: object) -> str | None:
    return None if path is None else str(path)
