"""Answers of known and of unknown length, and calls meanwhile and afterwards: KIND.

`/large` writes a long answer at once, and calls when that is done; `/later` some time after.
`/parts` writes an answer whose length is known in three parts, and calls before the last one.
`/chunked` does that without a length, and `/whole` calls when all of such an answer is written.
KIND is `asyncio`, `aiohttp`, `uvicorn` or `threads`. SNDBUF is the size of the socket's buffer.
"""

import asyncio
import http.client
import os
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

KIND = sys.argv[1]
PORT, BACKEND = int(os.environ["PORT"]), urlsplit(os.environ["BACKEND"])
PART = b"x" * 300_000
LARGE = b"y" * 1_000_000
AFTERWARDS = ("/large", "/later")
TASKS = set()


async def call(query: str) -> None:
    back, out = await asyncio.open_connection(BACKEND.hostname, BACKEND.port)
    out.write(f"GET /call?{query} HTTP/1.1\r\nHost: next\r\nConnection: close\r\n\r\n".encode())
    await back.read()
    out.close()


async def call_afterwards(path: str, query: str) -> None:
    if path == "/later":
        await asyncio.sleep(int(query.partition("=")[2]) % 53 / 1000)
    await call(query)


def head(length: int) -> bytes:
    framing = f"Content-Length: {length}" if length else "Transfer-Encoding: chunked"
    return f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode()


def in_chunk(part: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(part), part)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    TASKS.add(asyncio.current_task())
    try:
        while request := await reader.readuntil(b"\r\n\r\n"):
            path, _, query = request.split(b" ", 2)[1].decode().partition("?")
            if path in AFTERWARDS:
                writer.write(head(len(LARGE)) + LARGE)
                await call_afterwards(path, query)
                continue
            known = path == "/parts"
            frame = bytes if known else in_chunk
            writer.write(head(3 * len(PART) if known else 0))
            for number in range(3):
                if number == 2 and path != "/whole":
                    await call(query)
                writer.write(frame(PART))
                await writer.drain()
            if not known:
                writer.write(b"0\r\n\r\n")
            if path == "/whole":
                await call(query)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        TASKS.discard(asyncio.current_task())
        writer.close()


def listener() -> socket.socket:
    found = socket.create_server(("127.0.0.1", PORT), backlog=128)
    if size := int(os.environ.get("SNDBUF", "0")):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    return found


async def alone() -> None:
    server = await asyncio.start_server(serve, sock=listener())
    await server.serve_forever()


def in_aiohttp() -> None:
    from aiohttp import web

    async def large(request: web.Request) -> web.StreamResponse:
        response = web.Response(body=LARGE)
        await response.prepare(request)
        await response.write_eof()
        await call_afterwards(request.path, request.query_string)
        return response

    async def parts(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if request.path == "/parts":
            response.content_length = 3 * len(PART)
        await response.prepare(request)
        for number in range(3):
            if number == 2 and request.path != "/whole":
                await call(request.query_string)
            await response.write(PART)
        if request.path == "/whole":
            await response.write_eof()
            await call(request.query_string)
        return response

    app = web.Application()
    app.add_routes([web.get(path, large) for path in AFTERWARDS])
    app.add_routes([web.get(path, parts) for path in ("/parts", "/chunked", "/whole")])
    web.run_app(app, sock=listener(), print=None)


async def answer(scope, receive, send) -> None:
    path, query = scope["path"], scope["query_string"].decode()
    length = {"/parts": 3 * len(PART), "/chunked": 0, "/whole": 0}.get(path, len(LARGE))
    headers = [(b"content-length", str(length).encode())] if length else []
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if path in AFTERWARDS:
        await send({"type": "http.response.body", "body": LARGE})
        await call_afterwards(path, query)
        return
    for number in range(3):
        if number == 2 and path != "/whole":
            await call(query)
        await send({"type": "http.response.body", "body": PART, "more_body": number < 2})
    if path == "/whole":
        await call(query)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def call(self) -> None:
        connection = http.client.HTTPConnection(BACKEND.netloc, timeout=10)
        connection.request("GET", f"/call?{self.path.partition('?')[2]}")
        connection.getresponse().read()
        connection.close()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        known = path == "/parts"
        self.wfile.write(head(len(LARGE) if path in AFTERWARDS else known and 3 * len(PART)))
        if path in AFTERWARDS:
            self.wfile.write(LARGE)
            self.call()
            return
        for number in range(3):
            if number == 2 and path != "/whole":
                self.call()
            self.wfile.write(PART if known else in_chunk(PART))
        if not known:
            self.wfile.write(b"0\r\n\r\n")
        if path == "/whole":
            self.call()

    def log_message(self, *_) -> None:
        pass


if KIND == "asyncio":
    asyncio.run(alone())
elif KIND == "aiohttp":
    in_aiohttp()
elif KIND == "uvicorn":
    import uvicorn

    config = uvicorn.Config(answer, log_level="warning", lifespan="off")
    uvicorn.Server(config).run(sockets=[listener()])
else:
    server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler, bind_and_activate=False)
    server.socket = listener()
    server.daemon_threads = True
    server.serve_forever()
