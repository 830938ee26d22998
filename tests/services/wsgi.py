"""A WSGI application that passes each request on: NEXT_PORT in the environment.

Each thread keeps its connection, unless the path has `new` in it.
"""

import http.client
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

_kept = threading.local()


def application(environ: dict[str, Any], start: Callable[..., object]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    environ["wsgi.input"].read()
    onward = getattr(_kept, "onward", None)
    if onward is None or "new" in path:
        onward = http.client.HTTPConnection("127.0.0.1", int(os.environ["NEXT_PORT"]), timeout=20)
    onward.request("GET", path)
    body = onward.getresponse().read()
    if "new" in path:
        onward.close()
    else:
        _kept.onward = onward
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
