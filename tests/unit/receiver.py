"""OTLP receivers: real HTTP and gRPC servers which decode with OpenTelemetry's own messages."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Received:
    """What arrived; `answers` are (status, headers, body) for the next requests, then 200."""

    def __init__(self) -> None:
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answers: deque[tuple[int, dict[str, str], bytes]] = deque()
        self.delay = 0.0
        self.always: int | None = None  # an HTTP status for all requests
        self.poison: bytes | None = None  # what contains it is answered with 500
        self.largest: int | None = None  # bytes; what is larger is answered with 413

    def spans(self) -> list[Span]:
        return [
            span
            for request in list(self.traces)
            for resource_spans in request.resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ]

    def wait_for_spans(self, count: int, *, timeout: float = 15.0) -> list[Span]:
        """Until `count` spans are here, then what is here; the caller's assert tells a miss."""
        end = time.monotonic() + timeout
        while len(self.spans()) < count and time.monotonic() < end:
            time.sleep(0.01)
        return self.spans()


class HttpReceiver(Received):
    """`with HttpReceiver() as receiver:` listens at `receiver.endpoint`."""

    def __init__(self, port: int = 0, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__()
        received = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                received.take(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.endpoint = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def take(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        size = len(body)
        if handler.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        time.sleep(self.delay)
        self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        self.paths.append(handler.path)
        status, headers, content = self.answers.popleft() if self.answers else (200, {}, b"")
        if self.always is not None:
            status = self.always
        if self.largest is not None and size > self.largest:
            status = 413
        if self.poison is not None and self.poison in body:
            status = 500
        if status == 200:
            if handler.path.endswith("/metrics"):
                self.metrics.append(ExportMetricsServiceRequest.FromString(body))
            else:
                self.traces.append(ExportTraceServiceRequest.FromString(body))
        handler.send_response(status)
        for name, value in {"Content-Type": "application/x-protobuf", **headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def __enter__(self) -> HttpReceiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class GrpcReceiver(Received):
    """The same over gRPC. `code` makes all calls fail with that grpc.StatusCode name."""

    def __init__(self, port: int = 0, *, tls: grpc.ServerCredentials | None = None) -> None:
        super().__init__()
        self.code: str | None = None
        received = self

        def answer(request: Any, context: Any, *, into: list[Any], response: Any) -> Any:
            received.headers.append(
                {key: str(value) for key, value in context.invocation_metadata()}
            )
            if received.code is not None:
                context.abort(grpc.StatusCode[received.code], "as the test asked")
            into.append(request)
            return response

        class Traces(trace_service_pb2_grpc.TraceServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
                response = ExportTraceServiceResponse()
                return answer(request, context, into=received.traces, response=response)

        class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
                response = ExportMetricsServiceResponse()
                return answer(request, context, into=received.metrics, response=response)

        self._server = grpc.server(ThreadPoolExecutor(2))
        self._add(trace_service_pb2_grpc.add_TraceServiceServicer_to_server, Traces())
        self._add(metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server, Metrics())
        address = f"127.0.0.1:{port}"
        if tls is None:
            self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port(address)}"
        else:
            self.endpoint = f"https://127.0.0.1:{self._server.add_secure_port(address, tls)}"

    def _add(self, add: Any, servicer: Any) -> None:  # generated code has no types
        add(servicer, self._server)

    def __enter__(self) -> GrpcReceiver:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()
