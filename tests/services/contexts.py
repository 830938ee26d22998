"""A service by asyncio alone, for any Python: the paths of tests/parents/README.md.

`/pool` calls in a thread of `asyncio.to_thread`. `/nothing` makes no call. With ITSELF the task
that answers makes the calls of `/after`, too: the next request on its connection waits for them.
"""

import asyncio
import http.client
import os
from urllib.parse import urlsplit

ITSELF = "ITSELF" in os.environ
PORT, BACKEND = int(os.environ["PORT"]), urlsplit(os.environ["BACKEND"])
tasks = set()


async def call(query: str) -> None:
    back, out = await asyncio.open_connection(BACKEND.hostname, BACKEND.port)
    out.write(f"GET /{query} HTTP/1.1\r\nHost: next\r\nConnection: close\r\n\r\n".encode())
    await back.read()
    out.close()


def call_in_thread(query: str) -> None:
    connection = http.client.HTTPConnection(BACKEND.netloc)
    connection.request("GET", f"/{query}")
    connection.getresponse().read()
    connection.close()


async def call_later(query: str, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await call(query)


async def poll() -> None:
    number = 0
    while True:
        await asyncio.gather(call(f"poll?id={number}"), asyncio.sleep(0.02))
        number += 1


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    this = asyncio.current_task()
    tasks.add(this)  # Python 3.9 itself has only weak references
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            path, _, query = head.split(b" ", 2)[1].decode().partition("?")
            query = f"call?{query}"
            if path == "/sleep":
                await asyncio.sleep(0.01)
            if path == "/two":
                await asyncio.gather(call(f"{query}&n=1"), call(f"{query}&n=2"))
            elif path == "/pool":
                await asyncio.to_thread(call_in_thread, query)
            elif path == "/after" and not ITSELF:
                seconds = int(query.partition("id=")[2]) % 11 / 1000
                task = asyncio.create_task(call_later(query, seconds))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            elif path not in ("/nothing", "/after"):
                await call(query)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            if path == "/after" and ITSELF:
                await call_later(query, 0.001 + int(query.partition("id=")[2]) % 11 / 1000)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        tasks.discard(this)
        writer.close()


async def main() -> None:
    shared = bool(os.environ.get("SHARED_PORT"))
    options = {"backlog": 512, "reuse_port": shared}
    server = await asyncio.start_server(serve, "127.0.0.1", PORT, **options)
    if os.environ.get("POLLER"):
        tasks.add(asyncio.create_task(poll()))
    await server.serve_forever()


asyncio.run(main())
