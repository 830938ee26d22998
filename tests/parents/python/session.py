"""FastAPI with aiohttp's client: `uvicorn session:app`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator

from aiohttp import ClientSession, TCPConnector
from fastapi import BackgroundTasks, FastAPI, Request

BACKEND = os.environ["BACKEND"]
POLL_SECONDS = 0.02


async def poll(session: ClientSession) -> None:
    for number in itertools.count():
        async with session.get(f"{BACKEND}/poll?id={number}") as answer:
            await answer.text()
        await asyncio.sleep(POLL_SECONDS)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with ClientSession(connector=TCPConnector(limit=0)) as session:
        app.state.session = session
        poller = asyncio.create_task(poll(session)) if "POLLER" in os.environ else None
        yield
        if poller:
            poller.cancel()


app = FastAPI(lifespan=lifespan)


async def call(request: Request, more: str = "") -> str:
    session: ClientSession = request.app.state.session
    async with session.get(f"{BACKEND}/call?id={request.query_params['id']}{more}") as answer:
        return await answer.text()


async def call_later(request: Request) -> None:
    await asyncio.sleep(int(request.query_params["id"]) % 11 / 1000)
    await call(request)


@app.get("/at-once")
async def at_once(request: Request) -> str:
    return await call(request)


@app.get("/sleep")
async def sleep(request: Request) -> str:
    await asyncio.sleep(0.01)
    return await call(request)


@app.get("/two")
async def two(request: Request) -> str:
    return "".join(await asyncio.gather(call(request, "&n=1"), call(request, "&n=2")))


@app.get("/after")
async def after(request: Request, tasks: BackgroundTasks) -> str:
    tasks.add_task(call_later, request)
    return "later"


@app.post("/body")
async def body(request: Request) -> str:
    await request.body()
    return await call(request)
