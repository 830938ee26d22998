"""A thread per connection (http.server), and calls of the next service: PORT [NEXT_PORT].

With CERTIFICATE in the environment, a file with key and certificate, both are HTTPS.

Answers JSON: the request headers it got (name -> list of values), its body's length, and what the
next service answered. Knows nothing about traces.
"""

import http.client
import json
import os
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = int(sys.argv[1])
NEXT = int(sys.argv[2]) if len(sys.argv) > 2 else 0
CERTIFICATE = os.environ.get("CERTIFICATE")


def connect() -> http.client.HTTPConnection:
    if CERTIFICATE is None:
        return http.client.HTTPConnection("127.0.0.1", NEXT, timeout=10)
    trust = ssl.create_default_context(cafile=CERTIFICATE)
    return http.client.HTTPSConnection("127.0.0.1", NEXT, timeout=10, context=trust)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers: dict[str, list[str]] = {}
        for name, value in self.headers.items():
            headers.setdefault(name.lower(), []).append(value)
        answer = {"path": self.path, "headers": headers, "length": len(body), "next": None}
        if NEXT:
            request_id = self.headers.get("X-Request-Id")
            onward = {"X-Request-Id": request_id} if request_id else {}
            connection = connect()
            connection.request("GET", self.path, headers=onward)
            text = connection.getresponse().read()
            answer["next"] = json.loads(text) if text.startswith(b"{") else text.decode()
            connection.close()
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


server = Server(("127.0.0.1", PORT), Handler)
if CERTIFICATE is not None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    # the handshake is the thread's business: one slow client must not keep the others waiting
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
server.serve_forever()
