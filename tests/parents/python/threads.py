"""FastAPI with synchronous handlers, which run in threads, and requests: `uvicorn threads:app`."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import databases
import requests
from fastapi import BackgroundTasks, Body, FastAPI
from requests.adapters import HTTPAdapter

BACKEND = os.environ["BACKEND"]
session = requests.Session()
session.mount("http://", HTTPAdapter(pool_maxsize=40))
ask = databases.for_threads()
workers = ThreadPoolExecutor(16)


def poll() -> None:
    number = 0
    while True:
        session.get(f"{BACKEND}/poll?id={number}", timeout=20)
        number += 1
        time.sleep(0.02)


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    if os.environ.get("POLLER"):
        threading.Thread(target=poll, daemon=True).start()
    yield


app = FastAPI(lifespan=lifespan)


def call(number: int, rest: str = "") -> str:
    return session.get(f"{BACKEND}/call?id={number}{rest}", timeout=20).text


@app.get("/at-once")
def at_once(id: int) -> str:  # noqa: A002 (the name in the query)
    return call(id)


@app.get("/sleep")
def sleep(id: int) -> str:  # noqa: A002
    time.sleep(0.01)
    return call(id)


@app.get("/database")
def database(id: int) -> str:  # noqa: A002
    ask()
    return call(id)


@app.get("/two")
def two(id: int) -> list[str]:  # noqa: A002
    return list(workers.map(lambda n: call(id, f"&n={n}"), (1, 2)))


@app.get("/pool")
def pool(id: int) -> str:  # noqa: A002
    return workers.submit(call, id).result()


def later(number: int) -> None:
    time.sleep(number % 11 / 1000)
    call(number)


@app.get("/after")
def after(id: int, tasks: BackgroundTasks) -> str:  # noqa: A002
    tasks.add_task(later, id)
    return "ok"


@app.post("/body")
def body(id: int, content: bytes = Body(media_type="text/plain")) -> str:  # noqa: A002
    return call(id)
