"""Sends OTLP requests. One call is one request, and says what the receiver answered.

Waiting and trying again is the pipeline's work.
"""

from __future__ import annotations

import secrets

from throughline import __version__
from throughline.config.model import OtlpTarget
from throughline.export.outcome import Sender

# https://opentelemetry.io/docs/specs/otel/protocol/exporter/#user-agent
USER_AGENT = f"throughline-OTLP-Exporter-Python/{__version__}"

_TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_METRICS = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"


def span_sender(target: OtlpTarget) -> Sender:
    """Sends ExportTraceServiceRequests. Raises OSError when a certificate cannot be read."""
    return _sender(target, method=_TRACES)


def metric_sender(target: OtlpTarget) -> Sender:
    """Sends ExportMetricsServiceRequests."""
    return _sender(target, method=_METRICS)


def _sender(target: OtlpTarget, *, method: str) -> Sender:
    # Each library is imported only for those who chose its protocol: gRPC takes 10 MB.
    if target.protocol == "grpc":
        from throughline.export import otlp_grpc

        return otlp_grpc.sender(target, method, headers=_headers(target), user_agent=USER_AGENT)
    from throughline.export import otlp_http

    return otlp_http.sender(target, headers={"User-Agent": USER_AGENT, **_headers(target)})


def _headers(target: OtlpTarget) -> dict[str, str]:
    """The configured headers, and an unsampled trace context of our own.

    A Collector that is traced itself would answer each export with a span, which makes an export.
    """
    context = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"
    return {"traceparent": context, **target.headers}
