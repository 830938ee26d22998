"""Flask that hands its calls to workers: `gunicorn tasks:app`, `celery --app tasks:celery`."""

from __future__ import annotations

import os

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


@app.get("/pool")
def pool() -> str:
    return call.delay(request.args["id"]).get(timeout=20)
