"""shop-receiver: keeps OTLP exports as they came, for tests that decode them.

`POST /v1/traces` is what an exporter does. `GET /v1/traces?since=N` gives the bodies from number N
on as a JSON list of base64. The standard library is all that a VM of the matrix has.
"""

import base64
import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

bodies: list[bytes] = []
lock = threading.Lock()


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces":
            with lock:
                bodies.append(body)
        self.answer(b"", "application/x-protobuf")

    def do_GET(self) -> None:
        since = int(self.path.partition("since=")[2] or 0)
        with lock:
            found = [base64.b64encode(body).decode() for body in bodies[since:]]
        self.answer(json.dumps(found).encode(), "application/json")

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Writes no line for each export."""


ThreadingHTTPServer(("127.0.0.1", 4318), Receiver).serve_forever()
