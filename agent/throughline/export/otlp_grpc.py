"""OTLP/gRPC, https://opentelemetry.io/docs/specs/otlp/#otlpgrpc."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from throughline.config.model import OtlpTarget
from throughline.export import answers
from throughline.export.outcome import Outcome, Sender

_STATUS_DETAILS = "grpc-status-details-bin"  # in the trailers: a google.rpc.Status


def sender(
    target: OtlpTarget, method: str, *, headers: Mapping[str, str], user_agent: str
) -> Sender:
    """Calls `method` with these headers. A call takes at most the target's timeout."""
    calls = _Calls(target, method, headers=headers, user_agent=user_agent)
    return Sender(calls.send, calls.close)


class _Calls:
    """Owns the channel."""

    def __init__(
        self, target: OtlpTarget, method: str, *, headers: Mapping[str, str], user_agent: str
    ) -> None:
        self._target = target
        self._method = method
        self._metadata = tuple(headers.items())
        self._options = (
            ("grpc.primary_user_agent", user_agent),
            # Else a new channel takes the connection of the old one, with its waiting time.
            ("grpc.use_local_subchannel_pool", 1),
        )
        self._credentials = None if target.insecure else _credentials(target)
        self._connect()

    def send(self, body: bytes) -> Outcome:
        try:
            response = self._call(body, metadata=self._metadata, timeout=self._target.timeout)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                # A channel waits ever longer before it connects again, and fails all calls until
                # then. The pipeline waits by itself, so each of its attempts is a new connection.
                self.close()
                self._connect()
            return answers.of_grpc(
                error.code().name, error.details() or "", retry_delay=_retry_delay(error)
            )
        return answers.of_response(response)

    def close(self) -> None:
        self._channel.close()

    def _connect(self) -> None:
        address = urlsplit(self._target.endpoint).netloc or self._target.endpoint
        compression = (
            grpc.Compression.Gzip
            if self._target.compression == "gzip"
            else grpc.Compression.NoCompression
        )
        if self._credentials is None:
            self._channel = grpc.insecure_channel(address, self._options, compression)
        else:
            self._channel = grpc.secure_channel(
                address, self._credentials, self._options, compression
            )
        self._call = self._channel.unary_unary(self._method)  # bytes go and come as they are


def _credentials(target: OtlpTarget) -> Any:
    return grpc.ssl_channel_credentials(
        root_certificates=target.certificate.read_bytes() if target.certificate else None,
        private_key=target.client_key.read_bytes() if target.client_key else None,
        certificate_chain=target.client_certificate.read_bytes()
        if target.client_certificate
        else None,
    )


def _retry_delay(error: Any) -> float | None:
    """The seconds of a RetryInfo in the trailers of a failed call; None when there is none."""
    for name, value in error.trailing_metadata() or ():
        if name != _STATUS_DETAILS:
            continue
        try:
            for detail in Status.FromString(value).details:
                info = RetryInfo()
                if detail.Unpack(info):
                    delay: float = info.retry_delay.seconds + info.retry_delay.nanos / 1e9
                    return max(0.0, delay)
        except DecodeError:
            return None
    return None
