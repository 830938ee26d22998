"""Names and rules of the OpenTelemetry semantic conventions for spans, metrics and status.

No module of OpenTelemetry is imported here: the agent needs these rules before it needs messages.
"""

from __future__ import annotations

SCHEMA_URL = "https://opentelemetry.io/schemas/1.30.0"
METHODS = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
)
CONNECTION_CLOSED = "connection_closed"  # error.type where the connection ended with no response
# UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS
GRPC_SERVER_ERRORS = frozenset((2, 4, 12, 13, 14, 15))


def http_failed(status: int, *, server: bool) -> bool:
    """Whether a request with this status code is an error; 0 means that no response was seen."""
    return status == 0 or status >= (500 if server else 400)


def grpc_failed(status: int, *, server: bool) -> bool:
    """Whether a call of gRPC with this status code is an error.

    A mistake of the client (NOT_FOUND, …) is an error of the client's span only.
    """
    return status in GRPC_SERVER_ERRORS if server else status != 0
