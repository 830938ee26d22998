"""FastAPI with httpx: `uvicorn asgi:app`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import databases
import httpx
from fastapi import BackgroundTasks, FastAPI, Request

BACKEND = os.environ["BACKEND"]
client = httpx.AsyncClient(timeout=20, limits=httpx.Limits(max_connections=None))


async def poll() -> None:
    number = 0
    while True:
        await client.get(f"{BACKEND}/poll?id={number}")
        number += 1
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(poll()) if os.environ.get("POLLER") else None
    async with databases.for_tasks() as app.state.ask:
        yield
    if task:
        task.cancel()


app = FastAPI(lifespan=lifespan)


async def call(number: int, rest: str = "") -> str:
    answer = await client.get(f"{BACKEND}/call?id={number}{rest}")
    return answer.text


@app.get("/at-once")
async def at_once(id: int) -> str:  # noqa: A002 (the name in the query)
    return await call(id)


@app.get("/sleep")
async def sleep(id: int) -> str:  # noqa: A002
    await asyncio.sleep(0.01)
    return await call(id)


@app.get("/database")
async def database(id: int) -> str:  # noqa: A002
    await app.state.ask()
    return await call(id)


@app.get("/two")
async def two(id: int) -> list[str]:  # noqa: A002
    return list(await asyncio.gather(call(id, "&n=1"), call(id, "&n=2")))


@app.get("/pool")
async def pool(id: int) -> str:  # noqa: A002
    answer = await asyncio.to_thread(httpx.get, f"{BACKEND}/call?id={id}")
    return answer.text


async def later(number: int) -> None:
    await asyncio.sleep(number % 11 / 1000)
    await call(number)


@app.get("/after")
async def after(id: int, tasks: BackgroundTasks) -> str:  # noqa: A002
    tasks.add_task(later, id)
    return "ok"


@app.post("/body")
async def body(id: int, request: Request) -> str:  # noqa: A002
    await request.body()
    return await call(id)
