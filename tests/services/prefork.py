"""A pre-forking blocking server, as gunicorn sync: PORT NEXT_PORT. Eight workers, one request each.

Each request is passed on over a connection that the worker keeps.
"""

import http.client
import os
import socket
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=512)
onward: http.client.HTTPConnection | None = None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        global onward
        if onward is None:
            onward = http.client.HTTPConnection("127.0.0.1", int(sys.argv[2]), timeout=10)
        onward.request("GET", self.path)
        body = onward.getresponse().read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


for _ in range(7):
    if os.fork() == 0:
        break
server = HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = listener
while True:
    server._handle_request_noblock()
