"""shop-prices: shows the headers of GET /prices/ID as they came, and sends POST /bytes/ID back.

On a port, and on a Unix socket.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import ThreadingUnixStreamServer

LOCAL = "/run/shop-prices/http.sock"


class Server(ThreadingHTTPServer):
    request_queue_size = 128


class Prices(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        received: dict[str, list[str]] = {}
        for name, value in self.headers.items():
            received.setdefault(name.lower(), []).append(value)
        cart = self.path.rpartition("/")[2]
        self.answer(json.dumps({"service": "prices", "cart": cart, "received": received}).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = len(self.headers.get_all("traceparent", []))
        self.answer(body, sha256=hashlib.sha256(body).hexdigest(), traceparents=str(headers))

    def answer(self, body: bytes, **seen: str) -> None:
        self.send_response(200)
        for name, value in seen.items():
            self.send_header(f"X-{name.capitalize()}", value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        """For the log. A client on a Unix socket has no address."""
        return self.client_address[0] if self.client_address else "local"


class LocalServer(ThreadingUnixStreamServer):
    request_queue_size = 128


local = LocalServer(LOCAL, Prices)
threading.Thread(target=local.serve_forever, daemon=True).start()
Server(("127.0.0.1", 8003), Prices).serve_forever()
