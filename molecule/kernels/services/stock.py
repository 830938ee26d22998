"""shop-stock: answers GET /stock/ID with what shop-prices says, and hands POST /bytes/ID on."""

import http.client
import json
import os
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


Server(("127.0.0.1", 8002), Stock).serve_forever()
