"""A gRPC server with a pool of threads, whose methods call by HTTP: `rpc.py`."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import requests
from requests.adapters import HTTPAdapter

BACKEND = os.environ["BACKEND"]
session = requests.Session()
session.mount("http://", HTTPAdapter(pool_maxsize=40))


def at_once(number: bytes, _: grpc.ServicerContext) -> bytes:
    return session.get(f"{BACKEND}/call?id={number.decode()}", timeout=20).content


def sleep(number: bytes, context: grpc.ServicerContext) -> bytes:
    time.sleep(0.01)
    return at_once(number, context)


METHODS = {"at-once": at_once, "sleep": sleep}

if __name__ == "__main__":
    server = grpc.server(ThreadPoolExecutor(16))
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(method) for name, method in METHODS.items()
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.Bench", handlers)])
    server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
    server.start()
    server.wait_for_termination()
