"""shop-orders: answers GET /orders/ID with what shop-stock says about it."""

import json
import os
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # the default of 5 makes clients wait a second when many come at once


class Orders(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        cart = self.path.rpartition("/")[2]
        with urllib.request.urlopen(
            f"{os.environ['SHOP_STOCK']}/stock/{cart}", timeout=10
        ) as answer:
            stock = json.load(answer)
        body = json.dumps({"service": "orders", "cart": cart, "stock": stock}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


Server(("0.0.0.0", 8001), Orders).serve_forever()
