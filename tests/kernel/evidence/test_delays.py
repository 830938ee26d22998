"""nginx that calls from timers: for requests that it delays, and when an upstream does not answer.

A timer that ends runs in the same turn as the handlers of events, so that what was read last is not
what the call is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence

import pytest

from tests.fixtures import nginx
from tests.parents.app import PROXY, App, Behaviour, MissingError, Place, Process
from tests.parents.cell import Bench, bench
from tests.parents.debian import installs
from tests.parents.judge import Result

MANY = {32: 503}
PLAIN = "proxy_pass http://127.0.0.1:{backend};"
KEPT = 'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass http://kept;'
LIMIT = "limit_req zone=slow burst=1000;"
RETRY = "proxy_next_upstream error timeout non_idempotent; proxy_read_timeout 100ms;"
# where the first of two upstreams is
NOWHERE = {"silent": None, "refuses": 1}


@pytest.fixture(scope="module")
def proven() -> Iterator[Bench]:
    with bench(instrumentation={"proxies": "off"}) as found:
        yield found


@pytest.fixture(scope="module")
def likely() -> Iterator[Bench]:
    with bench("likely", instrumentation={"proxies": "off"}) as found:
        yield found


def app(name: str, location: str, upstream: str = "") -> App:
    def start(place: Place) -> Sequence[Process]:
        http = (
            "limit_req_zone $server_port zone=slow:1m rate=150r/s;"
            f"upstream kept {{ {upstream}"
            f" server 127.0.0.1:{place.backend} max_fails=0; keepalive 16; }}"
            f"server {{ listen 127.0.0.1:{place.port} backlog=512;"
            f" location / {{ {location.format(backend=place.backend)} }} }}"
        )
        return [Process(nginx.prepare(place.folder, http))]

    return App(name, "Proxies", name, start, PROXY, installs("nginx", "nginx-light"))


def results(running: Bench, of: App) -> list[tuple[Behaviour, Result]]:
    try:
        found = list(running.run(of, of.behaviours, MANY))
    except MissingError as error:
        pytest.skip(str(error))
    for behaviour, result in found:
        assert result.calls, (of.name, behaviour, result.failures)
        assert result.wrong == 0, (of.name, behaviour, result.examples)
    return found


@pytest.mark.parametrize(("name", "location"), [("limit", PLAIN), ("limit-kept", KEPT)])
def test_requests_that_are_delayed(proven: Bench, name: str, location: str) -> None:
    for behaviour, result in results(proven, app(name, LIMIT + location)):
        assert not result.failures, behaviour


def test_requests_that_are_delayed_where_likely_is_enough(likely: Bench) -> None:
    results(likely, app("limit", LIMIT + PLAIN))


@pytest.mark.parametrize(("name", "location"), [("at-once", PLAIN), ("at-once-kept", KEPT)])
def test_where_none_is_delayed_nothing_is_lost(proven: Bench, name: str, location: str) -> None:
    for behaviour, result in results(proven, app(name, location)):
        assert result.right == result.calls, (behaviour, result)


@pytest.mark.parametrize("buffered", ["", "proxy_request_buffering off;"], ids=["whole", "parts"])
@pytest.mark.parametrize("first", NOWHERE)
def test_an_upstream_that_fails(proven: Bench, first: str, buffered: str) -> None:
    """What was sent in part is not sent again, so that some requests fail."""
    with contextlib.closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        if first == "silent":
            silent.listen(4096)
        port = NOWHERE[first] or silent.getsockname()[1]
        upstream = f"server 127.0.0.1:{port} max_fails=0;"
        results(proven, app(f"retry-{first}-{len(buffered)}", buffered + RETRY + KEPT, upstream))


async def _cache(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A cache that has every key, as memcached answers."""
    with contextlib.suppress(ConnectionError), contextlib.closing(writer):
        while line := await reader.readline():
            writer.write(b"VALUE %s 0 2\r\nok\r\nEND\r\n" % line.split()[1])


@pytest.fixture
def cache() -> Iterator[int]:
    """The port of a cache."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(_cache, "127.0.0.1", 0, backlog=512))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def test_calls_that_cannot_be_told(proven: Bench, cache: int) -> None:
    """One that is no HTTP, on a kept connection, and another request's second try behind it.

    What has failed is told in the same turn in which the first one was read, and its call made.
    """

    def start(place: Place) -> Sequence[Process]:
        http = (
            f"upstream cached {{ server 127.0.0.1:{cache}; keepalive 32; }}"
            f"upstream kept {{ server 127.0.0.1:{NOWHERE['refuses']} max_fails=0;"
            f" server 127.0.0.1:{place.backend} max_fails=0; keepalive 16; }}"
            f"server {{ listen 127.0.0.1:{place.port} backlog=512;"
            f" location /at-once {{ set $memcached_key $request_uri; memcached_pass cached; }}"
            f" location / {{ {RETRY} {KEPT} }} }}"
        )
        return [Process(nginx.prepare(place.folder, http, workers=1))]

    title = "untold"
    needed = installs("nginx", "nginx-light")
    results(proven, App(title, "Proxies", title, start, (Behaviour.BODY,), needed))
