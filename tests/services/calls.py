"""WSGI by the standard library alone: `/at-once` and `/sleep` of tests/parents/README.md."""

import http.client
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

BACKEND = urlsplit(os.environ["BACKEND"]).netloc
_kept = threading.local()


def application(environ: dict[str, Any], start: Callable[..., object]) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/sleep":
        time.sleep(0.01)
    if not hasattr(_kept, "onward"):
        _kept.onward = http.client.HTTPConnection(BACKEND, timeout=20)
    _kept.onward.request("GET", f"/call?{environ['QUERY_STRING']}")
    body = _kept.onward.getresponse().read()
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
