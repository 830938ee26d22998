"""Flask that hands its calls to workers: `gunicorn tasks:app`, `celery --app tasks:celery`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import requests
from celery import Celery
from flask import Flask, request

BACKEND = os.environ["BACKEND"]
REDIS = f"redis://127.0.0.1:{os.environ['REDIS_PORT']}/1"
app = Flask(__name__)
celery = Celery("tasks", broker=REDIS, backend=REDIS)
session = requests.Session()


@celery.task
def call(number: str) -> str:
    return session.get(f"{BACKEND}/call?id={number}", timeout=20).text


def in_parts(number: str) -> str:
    """Calls before and after what is no end of a job, and one in another thread."""

    def part(name: str) -> str:
        return session.get(f"{BACKEND}/{name}?id={number}", timeout=20).text

    async def task() -> str:
        await asyncio.sleep(0.01)
        return part("task")

    part("first")
    subprocess.run(["true"], capture_output=True, check=True)  # reads pipes of its own
    os.read(*_pipe(b"abcd"))
    part("second")
    time.sleep(0.01)
    asyncio.run(task())
    with ThreadPoolExecutor(1) as pool:
        pool.submit(part, "thread").result()
    return part("last")


def _pipe(data: bytes) -> tuple[int, int]:
    """A pipe that holds data, and how long that is."""
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    return read, len(data)


@celery.task
def parts(number: str) -> str:
    return in_parts(number)


@celery.task
def adopts(number: str) -> str:
    """As an instrumented client does."""
    own = {"traceparent": f"00-{int(number):032x}-00000000000000aa-01"}
    return session.get(f"{BACKEND}/own?id={number}", headers=own, timeout=20).text


class _Inherited:
    """A pipe that the worker's parent has made. It is no queue of jobs."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()

    def pass_on(self) -> None:
        os.write(self.write, b"abcdefgh")
        os.read(self.read, 4)
        os.read(self.read, 4)


inherited = _Inherited()


@celery.task
def reads(number: str) -> str:
    """Calls between reads that look like those of a job."""
    session.get(f"{BACKEND}/first?id={number}", timeout=20)
    inherited.pass_on()
    return session.get(f"{BACKEND}/last?id={number}", timeout=20).text


@celery.task
def dies(number: str) -> str:
    session.get(f"{BACKEND}/first?id={number}", timeout=20)
    os._exit(1)


@app.get("/job/<name>")
def in_a_job(name: str) -> str:
    try:
        return str(celery.tasks[f"tasks.{name}"].delay(request.args["id"]).get(timeout=20))
    except Exception as error:  # the worker has died
        return repr(error)


@app.get("/pool")
def pool() -> str:
    return call.delay(request.args["id"]).get(timeout=20)
