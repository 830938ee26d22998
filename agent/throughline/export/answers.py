"""What the answers of a receiver mean: accepted, again later, cut in halves, or never again.

The codes are those of the OTLP specification, https://opentelemetry.io/docs/specs/otlp/#failures
and #failures-1, with one difference: a batch is dropped only where its own bytes are to blame. The
specification lets a client drop what 401 or 404 answers; here such a batch waits in the spool until
the operator has put the mistake right. See docs/decisions/0012-otlp.md.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from throughline.export.outcome import ACCEPTED, Outcome, Verdict

_REFUSED_STATUS = frozenset((400, 415, 422))
_TOO_LARGE_STATUS = 413
_RETRYABLE_STATUS = frozenset((429, 502, 503, 504))

_REFUSED_CODES = frozenset(("INVALID_ARGUMENT",))
_RETRYABLE_CODES = frozenset(
    ("CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")
)
_RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"  # retryable when the receiver says how long to wait
# The operator's settings are to blame, not the batch.
_OPERATOR_CODES = frozenset(("UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "NOT_FOUND"))


def of_http(status: int, reason: str, headers: Mapping[str, str], body: bytes) -> Outcome:
    """The outcome of an OTLP/HTTP request; `headers` are found by any case."""
    if 200 <= status < 300:
        protobuf = "protobuf" in headers.get("Content-Type", "")
        return of_response(body) if protobuf else ACCEPTED
    detail = f"HTTP {status} {reason}".rstrip()
    if status == _TOO_LARGE_STATUS:
        return Outcome(Verdict.TOO_LARGE, detail)
    if status in _REFUSED_STATUS:
        return Outcome(Verdict.REFUSED, detail)
    return Outcome(
        Verdict.RETRY,
        detail,
        retry_after=_seconds(headers.get("Retry-After", "")),
        suspicious=status >= 500 and status not in _RETRYABLE_STATUS,
    )


def of_grpc(code: str, message: str, *, retry_delay: float | None) -> Outcome:
    """The outcome of a call that failed; `retry_delay` is that of its RetryInfo, None without."""
    detail = f"gRPC {code}: {message}".rstrip(": ")
    if code in _REFUSED_CODES:
        return Outcome(Verdict.REFUSED, detail)
    if code == _RESOURCE_EXHAUSTED and "larger than max" in message:
        return Outcome(Verdict.TOO_LARGE, detail)  # gRPC has no code of its own for that
    retryable = code in _RETRYABLE_CODES or (
        code == _RESOURCE_EXHAUSTED and retry_delay is not None
    )
    return Outcome(
        Verdict.RETRY,
        detail,
        retry_after=retry_delay or 0.0,
        suspicious=not retryable and code not in _OPERATOR_CODES,
    )


def of_response(body: bytes) -> Outcome:
    """The outcome of an accepted request: all of it, or less (`partial_success`).

    The responses for spans and for metrics have the same fields.
    """
    try:
        partial = ExportTraceServiceResponse.FromString(body).partial_success
    except DecodeError:
        return ACCEPTED  # the status said so
    if partial.rejected_spans <= 0:
        return ACCEPTED
    detail = partial.error_message or "no reason given"
    return Outcome(Verdict.ACCEPTED, detail, rejected=partial.rejected_spans)


def _seconds(retry_after: str) -> float:
    """Of a Retry-After header: a number of seconds, or a date (RFC 9110 section 10.2.3)."""
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
