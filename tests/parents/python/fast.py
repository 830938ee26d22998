"""Sanic on its own server with uvloop, and httpx: `fast.py`."""

from __future__ import annotations

import asyncio
import contextlib
import os

import databases
import httpx
from sanic import Request, Sanic
from sanic.response import HTTPResponse, text

BACKEND = os.environ["BACKEND"]
app = Sanic("parents", configure_logging=False)


async def poll() -> None:
    number = 0
    while True:
        await app.ctx.client.get(f"{BACKEND}/poll?id={number}")
        number += 1
        await asyncio.sleep(0.02)


@app.before_server_start
async def begin(app: Sanic) -> None:
    limits = httpx.Limits(max_connections=None)
    app.ctx.client = httpx.AsyncClient(timeout=20, limits=limits)
    app.ctx.stack = contextlib.AsyncExitStack()
    app.ctx.ask = await app.ctx.stack.enter_async_context(databases.for_tasks())
    if os.environ.get("POLLER"):
        app.add_task(poll())


@app.after_server_stop
async def end(app: Sanic) -> None:
    await app.ctx.stack.aclose()


async def call(request: Request, rest: str = "") -> str:
    answer = await app.ctx.client.get(f"{BACKEND}/call?id={request.args.get('id')}{rest}")
    return str(answer.text)


@app.get("/at-once")
async def at_once(request: Request) -> HTTPResponse:
    return text(await call(request))


@app.get("/sleep")
async def sleep(request: Request) -> HTTPResponse:
    await asyncio.sleep(0.01)
    return text(await call(request))


@app.get("/database")
async def database(request: Request) -> HTTPResponse:
    await app.ctx.ask()
    return text(await call(request))


@app.get("/two")
async def two(request: Request) -> HTTPResponse:
    found = await asyncio.gather(call(request, "&n=1"), call(request, "&n=2"))
    return text("".join(found))


@app.get("/pool")
async def pool(request: Request) -> HTTPResponse:
    url = f"{BACKEND}/call?id={request.args.get('id')}"
    answer = await asyncio.to_thread(httpx.get, url)
    return text(answer.text)


async def later(request: Request) -> None:
    await asyncio.sleep(int(request.args.get("id", "0")) % 11 / 1000)
    await call(request)


@app.get("/after")
async def after(request: Request) -> HTTPResponse:
    request.app.add_task(later(request))
    return text("ok")


@app.post("/body")
async def body(request: Request) -> HTTPResponse:
    return text(await call(request))


if __name__ == "__main__":
    app.run("127.0.0.1", int(os.environ["PORT"]), single_process=True, access_log=False)
