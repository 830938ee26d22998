"""A service on uvloop whose protocol copies no context when it is told of a request.

Tasks that are older than all requests take them from a queue, and call. Beside them some poll, in a
task that was made right before a `listen`. Nothing but the program itself knows whose call it is.
"""

import asyncio
import contextvars
import os
import socket
from urllib.parse import urlsplit

import uvloop

PORT, BACKEND = int(os.environ["PORT"]), urlsplit(os.environ["BACKEND"])
tasks = set()


class Protocol(asyncio.Protocol):
    def __init__(self, queue: asyncio.Queue) -> None:
        self.queue = queue
        self.read = b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.read += data
        while b"\r\n\r\n" in self.read:
            head, _, self.read = self.read.partition(b"\r\n\r\n")
            self.queue.put_nowait((self.transport, head))


async def call(query: str) -> None:
    back, out = await asyncio.open_connection(BACKEND.hostname, BACKEND.port)
    out.write(f"GET /{query} HTTP/1.1\r\nHost: next\r\nConnection: close\r\n\r\n".encode())
    await back.read()
    out.close()


async def work(queue: asyncio.Queue) -> None:
    while True:
        transport, head = await queue.get()
        query = head.split(b" ", 2)[1].decode().partition("?")[2]
        await asyncio.gather(call(f"call?{query}"), asyncio.sleep(0))
        transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


async def poll(number: int, step: int) -> None:
    while True:
        await asyncio.gather(call(f"poll?id={number}"), asyncio.sleep(0.005))
        number += step


async def main() -> None:
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue = asyncio.Queue()
    for _ in range(8):
        tasks.add(asyncio.create_task(work(queue)))
    listener = socket.socket()
    listener.bind(("127.0.0.1", PORT))
    if os.environ.get("POLLER"):
        tasks.add(asyncio.create_task(poll(0, 2)))
        listener.listen(512)
        other = contextvars.copy_context()
        listener.listen(512)
        tasks.add(other.run(loop.create_task, poll(1, 2)))
    server = await loop.create_server(lambda: Protocol(queue), sock=listener, backlog=512)
    await server.serve_forever()


uvloop.run(main())
