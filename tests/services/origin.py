"""The end of a chain, on http.server with threads: PORT. Answers known bytes.

GET /SIZE/NUMBER answers `SIZE` bytes which only SIZE and NUMBER decide (see `payload`), chunked
with `?chunked`; POST answers the same way and the SHA-256 of what it got in `X-Body-Sha256`. Each
answer says in `X-Traceparents` which traceparent headers the request carried, as a JSON list.
"""

import hashlib
import json
import random
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_POOL = random.Random(23).randbytes(6_000_000)


def payload(size: int, number: int) -> bytes:
    """The body of /SIZE/NUMBER; at most 5 MB."""
    offset = number * 7919 % 900_000
    return _POOL[offset : offset + size]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # the head and the beginning of the body leave together

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        digest = hashlib.sha256(self.rfile.read(length)).hexdigest()
        path, _, query = self.path.partition("?")
        size, number = (int(part) for part in path.split("/")[-2:])
        body = payload(size, number)
        # HTTP/1.0 (nginx without keep-alive) knows no chunks
        chunked = query == "chunked" and self.request_version == "HTTP/1.1"
        self.send_response(200)
        self.send_header("X-Body-Sha256", digest)
        self.send_header("X-Traceparents", json.dumps(self.headers.get_all("traceparent", [])))
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(size))
        self.end_headers()
        if not chunked:
            self.wfile.write(body)
            return
        for start in range(0, size, 30_011):
            piece = body[start : start + 30_011]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
