"""A proxy of threads that pretends to be Node.js with the preload, and shows what it likes.

Each thread tells of an address before each call: of bytes that name a descriptor which the process
does not serve, of none, of an address that is not mapped.
"""

from __future__ import annotations

import ctypes
import os
import random
import struct
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAGIC, POSITION = 0x65646F6E6E6C7401, 0x746C6E6F6465
libc = ctypes.CDLL(None, use_errno=True)
libc.pwrite64.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_longlong)
null = os.open("/dev/null", os.O_WRONLY)


def tell(number: int) -> object:
    """Returns what has to live while the call is made."""
    descriptors = (0, 1, 2, 1000, 2**31, 2**32 - 1)
    shown = struct.pack(
        "<QIIIQ4x",
        MAGIC,
        random.choice(descriptors),
        random.choice((0, int(time.monotonic()), 2**32 - 1)),
        random.choice((0, 2**32 - 1)),
        number,
    )
    memory = ctypes.create_string_buffer(shown, len(shown))
    libc.pwrite64(null, ctypes.addressof(memory), len(shown), POSITION)
    if number % 3 == 0:
        libc.pwrite64(null, random.choice((0, 8, 1 << 47, 2**64 - 8)), 32, POSITION)
    if number % 5 == 0:
        memory = ctypes.create_string_buffer(len(shown))  # the bytes that were told of may be freed
    return memory


class Handler(BaseHTTPRequestHandler):
    """GET /at-once?id=N."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        number = int(self.path.rpartition("=")[2])
        kept = tell(number)
        url = f"{os.environ['BACKEND']}/call?id={number}"
        with urllib.request.urlopen(url, timeout=20) as response:
            body = response.read()
        del kept
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
