"""shop-held: calls shop-prices for GET /held/ID on one connection, made at its start."""

import http.client
import os
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

prices = http.client.HTTPConnection(
    urllib.parse.urlsplit(os.environ["SHOP_PRICES"]).netloc, timeout=60
)
prices.connect()
prices.auto_open = 0  # it never makes another connection
lock = threading.Lock()


class Held(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with lock:
            prices.request("GET", f"/prices/{self.path.rpartition('/')[2]}")
            body = prices.getresponse().read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Writes no line for each request."""


ThreadingHTTPServer(("127.0.0.1", 8004), Held).serve_forever()
