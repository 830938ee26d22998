"""http.server of the standard library with requests: `plain.py`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import databases
import requests
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


def call(number: str, rest: str = "") -> str:
    return session.get(f"{BACKEND}/call?id={number}{rest}", timeout=20).text


def sleep(number: str) -> str:
    time.sleep(0.01)
    return call(number)


def database(number: str) -> str:
    ask()
    return call(number)


def two(number: str) -> str:
    return "".join(workers.map(lambda n: call(number, f"&n={n}"), (1, 2)))


def pool(number: str) -> str:
    return workers.submit(call, number).result()


PATHS: dict[str, Callable[[str], str]] = {
    "/at-once": call,
    "/sleep": sleep,
    "/database": database,
    "/two": two,
    "/pool": pool,
    "/body": call,
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, text: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        number = parse_qs(url.query).get("id", ["0"])[0]
        if url.path == "/after":
            self.answer("ok")
            time.sleep(int(number) % 11 / 1000)
            call(number)
        elif found := PATHS.get(url.path):
            self.answer(found(number))
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """It is quiet."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    if os.environ.get("POLLER"):
        threading.Thread(target=poll, daemon=True).start()
    Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
