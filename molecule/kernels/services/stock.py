"""shop-stock: answers GET /stock/ID with the answer of shop-prices, and forwards POST /bytes/ID.

Where it has a certificate, in one file with its key, it answers HTTPS as well.
"""

import http.client
import json
import os
import ssl
import threading
import urllib.parse
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PRICES = urllib.parse.urlsplit(os.environ["SHOP_PRICES"]).netloc


class Server(ThreadingHTTPServer):
    request_queue_size = 128


class Stock(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        cart = self.path.rpartition("/")[2]
        prices, _ = self.ask("GET", f"/prices/{cart}")
        body = json.dumps({"service": "stock", "cart": cart, "prices": json.loads(prices)}).encode()
        self.answer(body, {"Content-Type": "application/json"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        back, headers = self.ask("POST", self.path, body)
        self.answer(back, {name: headers[name] for name in ("X-Sha256", "X-Traceparents")})

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[bytes, Message]:
        prices = http.client.HTTPConnection(PRICES, timeout=60)
        prices.request(method, path, body)
        answer = prices.getresponse()
        content = answer.read()
        prices.close()
        return content, answer.headers

    def answer(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class SecureServer(Server):
    def __init__(self, port: int, certificate: str) -> None:
        super().__init__(("127.0.0.1", port), Stock)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        # The thread of the connection does the handshake.
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )


if "SHOP_CERTIFICATE" in os.environ:
    secure = SecureServer(8443, os.environ["SHOP_CERTIFICATE"])
    threading.Thread(target=secure.serve_forever, daemon=True).start()
Server(("127.0.0.1", 8002), Stock).serve_forever()
