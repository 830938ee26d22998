"""aiohttp as server and client: `web.py`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import redis.asyncio as redis
from aiohttp import ClientSession, TCPConnector, web

BACKEND = os.environ["BACKEND"]
cache = redis.Redis(
    connection_pool=redis.BlockingConnectionPool(
        port=int(os.environ["REDIS_PORT"]), max_connections=4
    )
)
SESSION = web.AppKey("session", ClientSession)
tasks: set[asyncio.Task[None]] = set()


async def poll(session: ClientSession) -> None:
    number = 0
    while True:
        async with session.get(f"{BACKEND}/poll?id={number}") as answer:
            await answer.read()
        number += 1
        await asyncio.sleep(0.02)


async def session_of(app: web.Application) -> AsyncIterator[None]:
    async with ClientSession(connector=TCPConnector(limit=0)) as session:
        app[SESSION] = session
        task = asyncio.create_task(poll(session)) if os.environ.get("POLLER") else None
        yield
        if task:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def call(request: web.Request, rest: str = "") -> str:
    number = request.query["id"]
    async with request.app[SESSION].get(f"{BACKEND}/call?id={number}{rest}") as answer:
        return await answer.text()


async def at_once(request: web.Request) -> web.Response:
    return web.Response(text=await call(request))


async def sleep(request: web.Request) -> web.Response:
    await asyncio.sleep(0.01)
    return web.Response(text=await call(request))


async def database(request: web.Request) -> web.Response:
    await cache.get("key")
    return web.Response(text=await call(request))


async def two(request: web.Request) -> web.Response:
    found = await asyncio.gather(call(request, "&n=1"), call(request, "&n=2"))
    return web.Response(text="".join(found))


queue: asyncio.Queue[tuple[web.Request, asyncio.Future[str]]] = asyncio.Queue()


async def work() -> None:
    while True:
        request, done = await queue.get()
        done.set_result(await call(request))


async def pool(request: web.Request) -> web.Response:
    """Workers that take their work from a queue."""
    done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    queue.put_nowait((request, done))
    return web.Response(text=await done)


async def workers(_: web.Application) -> AsyncIterator[None]:
    running = [asyncio.create_task(work()) for _ in range(8)]
    yield
    for task in running:
        task.cancel()


async def later(request: web.Request) -> None:
    await asyncio.sleep(int(request.query["id"]) % 11 / 1000)
    await call(request)


async def after(request: web.Request) -> web.StreamResponse:
    response = web.Response(text="ok")
    await response.prepare(request)
    await response.write_eof()
    task = asyncio.create_task(later(request))
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return response


async def body(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(text=await call(request))


app = web.Application()
app.cleanup_ctx.extend((session_of, workers))
app.add_routes(
    [
        web.get("/at-once", at_once),
        web.get("/sleep", sleep),
        web.get("/database", database),
        web.get("/two", two),
        web.get("/pool", pool),
        web.get("/after", after),
        web.post("/body", body),
    ]
)

if __name__ == "__main__":
    where: dict[str, Any] = {"host": "127.0.0.1", "port": int(os.environ["PORT"])}
    if os.environ.get("SOCKET"):
        where = {"path": os.environ["SOCKET"]}
        os.umask(0)  # nginx runs as another user
    web.run_app(app, **where, print=None)
