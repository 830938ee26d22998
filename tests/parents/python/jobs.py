"""Flask that hands its calls to RQ's workers: `gunicorn jobs:app`, `rq worker-pool`."""

from __future__ import annotations

import os
import time

import redis
import requests
from flask import Flask, request
from rq import Queue
from rq.job import Job
from tasks import in_parts

BACKEND = os.environ["BACKEND"]
connection = redis.Redis(port=int(os.environ["REDIS_PORT"]), db=2)
app = Flask(__name__)
queue = Queue(connection=connection)


def call(number: str) -> str:
    return requests.get(f"{BACKEND}/call?id={number}", timeout=20).text


def parts(number: str) -> str:
    return in_parts(number)


def result_of(job: Job, seconds: float) -> str:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = job.latest_result(timeout=1)
        if found is not None:
            return str(found.return_value)
    raise TimeoutError(job.id)


@app.get("/pool")
def pool() -> str:
    return result_of(queue.enqueue(call, request.args["id"]), 30)


@app.get("/job/parts")
def in_a_job() -> str:
    return result_of(queue.enqueue(parts, request.args["id"]), 30)
