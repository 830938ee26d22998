"""A server with one connection by TLS: PORT ONWARD. $CERTIFICATE is the other side's.

/call/N makes a call on it and reads the answer; /read/N only reads what comes.
"""

import os
import socket
import ssl
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

trust = ssl.create_default_context(cafile=os.environ["CERTIFICATE"])
plain = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
kept = trust.wrap_socket(plain, server_hostname="127.0.0.1")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/call/"):
            kept.sendall(f"GET {self.path} HTTP/1.1\r\nHost: far\r\n\r\n".encode())
        kept.recv(65536)
        self.send_response(204)
        self.end_headers()


HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
