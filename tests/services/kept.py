"""A service on uvloop that writes an answer and a call in one turn of the loop, without a wait.

GET /after?id=N    answers, then calls
GET /at-once?id=N  calls, then answers; with LATER=1 when the call is answered
"""

import asyncio
import os
from urllib.parse import urlsplit

import uvloop

PORT, BACKEND = int(os.environ["PORT"]), urlsplit(os.environ["BACKEND"])
LATER = "LATER" in os.environ
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    back, out = await asyncio.open_connection(BACKEND.hostname, BACKEND.port)
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            break
        path, _, query = head.split(b" ", 2)[1].decode().partition("?")
        if path == "/after":
            writer.write(ANSWER)
        out.write(f"GET /call?{query} HTTP/1.1\r\nHost: next\r\n\r\n".encode())
        if path != "/after" and not LATER:
            writer.write(ANSWER)
        length = 0
        for line in (await back.readuntil(b"\r\n\r\n")).splitlines():
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        await back.readexactly(length)
        if path != "/after" and LATER:
            writer.write(ANSWER)
    out.close()
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", PORT)
    async with server:
        await server.serve_forever()


uvloop.install()
asyncio.run(main())
