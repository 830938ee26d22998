"""Flask with requests: `gunicorn wsgi:app`."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import databases
import requests
from flask import Flask, Response, request
from requests.adapters import HTTPAdapter

BACKEND = os.environ["BACKEND"]
app = Flask(__name__)
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


if os.environ.get("POLLER"):
    threading.Thread(target=poll, daemon=True).start()


def call(number: str, rest: str = "") -> str:
    return session.get(f"{BACKEND}/call?id={number}{rest}", timeout=20).text


@app.get("/at-once")
def at_once() -> str:
    return call(request.args["id"])


@app.get("/sleep")
def sleep() -> str:
    time.sleep(0.01)
    return call(request.args["id"])


@app.get("/database")
def database() -> str:
    ask()
    return call(request.args["id"])


@app.get("/two")
def two() -> str:
    number = request.args["id"]
    return "".join(workers.map(lambda n: call(number, f"&n={n}"), (1, 2)))


@app.get("/pool")
def pool() -> str:
    return workers.submit(call, request.args["id"]).result()


@app.get("/after")
def after() -> Response:
    number = request.args["id"]

    def later() -> None:
        time.sleep(int(number) % 11 / 1000)
        call(number)

    response = Response("ok")
    response.call_on_close(later)
    return response


@app.post("/body")
def body() -> str:
    request.get_data()
    return call(request.args["id"])
