"""FastAPI with aiohttp's client: `uvicorn session:app`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from aiohttp import ClientSession, TCPConnector
from fastapi import FastAPI, Request

BACKEND = os.environ["BACKEND"]


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with ClientSession(connector=TCPConnector(limit=0)) as session:
        app.state.session = session
        yield


app = FastAPI(lifespan=lifespan)


async def call(request: Request) -> str:
    session: ClientSession = request.app.state.session
    async with session.get(f"{BACKEND}/call?id={request.query_params['id']}") as answer:
        return await answer.text()


@app.get("/at-once")
async def at_once(request: Request) -> str:
    return await call(request)


@app.get("/sleep")
async def sleep(request: Request) -> str:
    await asyncio.sleep(0.01)
    return await call(request)
