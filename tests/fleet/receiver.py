"""A small OTLP receiver: real OTLP protobuf over HTTP, kept in memory.

    with Receiver(network.listen("demo", port=4318)) as receiver:
        …
        receiver.wait(lambda spans: len(spans) >= 23, seconds=10)

By hand, `python -m tests.fleet.receiver --html build/trace.html` listens on 127.0.0.1:4318, prints
every trace as a tree, and writes the waterfall of what it has on Ctrl-C.
"""

from __future__ import annotations

import argparse
import gzip
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.metrics.v1.metrics_pb2 import ResourceMetrics

from tests.fixtures import spans as decoding
from tests.fixtures.spans import Span
from tests.fleet import tree, waterfall

PROTOBUF = "application/x-protobuf"
MAX_BODY = 64 * 1024 * 1024


class _Handler(BaseHTTPRequestHandler):
    """OTLP/HTTP 1.x: POST of a protobuf message, answered by one."""

    protocol_version = "HTTP/1.1"
    receiver: ClassVar[Receiver]

    def do_POST(self) -> None:
        body = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), MAX_BODY))
        if self.receiver.refuse_with:
            self._answer(self.receiver.refuse_with, b"")
        elif self.headers.get("Content-Type") != PROTOBUF:
            self._answer(415, b"")
        else:
            try:
                self._accept(body)
            except (DecodeError, zlib.error, gzip.BadGzipFile, EOFError):
                self._answer(400, b"")

    def _accept(self, body: bytes) -> None:
        encoding = self.headers.get("Content-Encoding", "identity")
        if encoding == "gzip":
            body = gzip.decompress(body)
        elif encoding == "deflate":
            body = zlib.decompress(body)
        if self.path == "/v1/traces":
            self.receiver.add_spans(decoding.decode(body))
            self._answer(200, ExportTraceServiceResponse().SerializeToString())
        elif self.path == "/v1/metrics":
            metrics = ExportMetricsServiceRequest.FromString(body)
            self.receiver.add_metrics(list(metrics.resource_metrics))
            self._answer(200, ExportMetricsServiceResponse().SerializeToString())
        else:
            self._answer(404, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", PROTOBUF)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name in the base)
        """Exports are not news."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, handler: type[_Handler]) -> None:
        super().__init__(listener.getsockname()[:2], handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener


class Receiver:
    """Collects what exporters send to a listening socket, in a thread, until the block ends.

    Set `refuse_with` to an HTTP status to refuse everything, as a broken Collector does.
    """

    def __init__(self, listener: socket.socket) -> None:
        self.refuse_with = 0
        self._changed = threading.Condition()
        self._spans: list[Span] = []
        self._metrics: list[ResourceMetrics] = []
        self._server = _Server(listener, type("Handler", (_Handler,), {"receiver": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def endpoint(self) -> str:
        """The value for OTEL_EXPORTER_OTLP_ENDPOINT."""
        host, port = self._server.socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add_spans(self, received: list[Span]) -> None:
        """Keeps spans and wakes who waits for them."""
        with self._changed:
            self._spans += received
            self._changed.notify_all()

    def forget_spans(self) -> None:
        """Those that have been received so far."""
        with self._changed:
            self._spans.clear()

    def add_metrics(self, received: list[ResourceMetrics]) -> None:
        """Keeps metrics and wakes who waits for them."""
        with self._changed:
            self._metrics += received
            self._changed.notify_all()

    @property
    def spans(self) -> list[Span]:
        """All spans so far."""
        with self._changed:
            return list(self._spans)

    @property
    def metrics(self) -> list[ResourceMetrics]:
        """All metrics so far."""
        with self._changed:
            return list(self._metrics)

    def wait(self, enough: Callable[[list[Span]], bool], *, seconds: float) -> bool:
        """Waits until `enough` is true of the spans received; False when time ran out first."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not enough(self._spans):
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._changed.wait(remaining):
                    return enough(self._spans)
        return True


def main() -> int:
    """Receives and prints until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.fleet.receiver", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=4318)
    parser.add_argument("--html", type=Path, help="write the waterfall here at the end")
    arguments = parser.parse_args()
    with Receiver(socket.create_server((arguments.host, arguments.port))) as receiver:
        print(f"receiver: {receiver.endpoint}, Ctrl-C ends", file=sys.stderr, flush=True)
        shown = 0
        try:
            while True:
                time.sleep(0.5)
                spans = receiver.spans
                fresh, shown = {span.trace_id for span in spans[shown:]}, len(spans)
                for trace_id, trace in decoding.by_trace(spans).items():
                    if trace_id in fresh:
                        print(f"\n{trace_id}", *tree.lines(trace), sep="\n", flush=True)
        except KeyboardInterrupt:
            if arguments.html:
                waterfall.write(arguments.html, receiver.spans)
                print(f"receiver: {arguments.html}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
