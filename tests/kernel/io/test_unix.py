"""Requests over Unix sockets: spans at both ends, and the whole chain under concurrent load."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.fixtures import needs, nginx, process, unix
from tests.fixtures.numbered import load
from tests.fixtures.paths import SERVICES
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.spans import Span
from tests.fixtures.traced import Traced
from tests.fixtures.waiting import poll

CONCURRENT = 32
REQUESTS = 1607
FEW = 23
APPLICATION = SERVICES / "wsgi.py"
HOPS = (("front", "SERVER"), ("front", "CLIENT"), ("app", "SERVER"), ("app", "CLIENT"))
PROXY = """
    upstream app {{ server unix:{path}; keepalive 64; }}
    server {{ listen 127.0.0.1:{port} backlog=512; location / {{ proxy_pass http://app; {more} }} }}
"""
KEEP = 'proxy_http_version 1.1; proxy_set_header Connection "";'


@pytest.fixture(autouse=True)
def _needed() -> None:
    needs.program("tl_unix_sends")


@pytest.fixture(scope="module")
def onward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    record = tmp_path_factory.mktemp("unix") / "record"
    with process.running([sys.executable, str(SERVICES / "recorder.py"), str(port), str(record)]):
        wait_port(port)
        yield port


def wait_socket(path: Path) -> None:
    poll(path.exists, seconds=20, every=0.02)
    path.chmod(0o777)  # nginx's workers run as another user


def gunicorn(traced: Traced, path: Path, onward: int, *more: str) -> None:
    where = ["--chdir", str(APPLICATION.parent), "--no-control-socket", "--bind", f"unix:{path}"]
    command = [sys.executable, "-m", "gunicorn", "--log-level", "error", *where, *more]
    environment = {**os.environ, "NEXT_PORT": str(onward)}
    traced.spawn("app", [*command, f"{APPLICATION.stem}:application"], env=environment)
    wait_socket(path)


def sent(
    traced: Traced, port: int, *, requests: int = REQUESTS, concurrent: int = CONCURRENT
) -> list[Span]:
    """Sends requests to the front end; returns all spans."""
    asyncio.run(load(port, "x", requests=requests, concurrent=concurrent))
    return traced.wait_spans(len(HOPS) * requests, seconds=20)


def check(found: Counter[str], requests: int = REQUESTS) -> None:
    print(dict(found))
    assert sum(found.values()) == requests
    assert not [verdict for verdict in found if verdict.startswith("wrong")], found
    assert found["right"] >= 0.999 * requests, found


@pytest.mark.parametrize("concurrent", [1, CONCURRENT])
@pytest.mark.parametrize("more", ["", KEEP], ids=["http10", "kept"])
@pytest.mark.parametrize(
    "workers", [("--workers=4",), ("--workers=2", "--threads=16")], ids=["sync", "threads"]
)
def test_nginx_and_gunicorn(
    onward: int, workers: Sequence[str], more: str, concurrent: int
) -> None:
    requests = REQUESTS if concurrent > 1 else FEW
    with Traced() as traced:
        path = traced.directory / "app.sock"
        gunicorn(traced, path, onward, *workers)
        port = free_port()
        nginx.start(traced, "front", PROXY.format(path=path, port=port, more=more), port=port)
        spans = sent(traced, port, requests=requests, concurrent=concurrent)
        check(unix.judge(spans, HOPS), requests)
        assert {s.evidence for s in spans if (s.service, s.kind) == HOPS[2]} == {"unix"}
        counters = traced.counters()
    assert counters["parent_unix"] >= 0.999 * requests


def test_what_the_spans_say(onward: int) -> None:
    with Traced() as traced:
        path = traced.directory / "app.sock"
        gunicorn(traced, path, onward)
        port = free_port()
        nginx.start(traced, "front", PROXY.format(path=path, port=port, more=""), port=port)
        spans = sent(traced, port, requests=1, concurrent=1)
    server, client = (
        next(s for s in spans if (s.service, s.kind) == hop) for hop in (HOPS[2], HOPS[1])
    )
    assert client.attributes["network.transport"] == "unix"
    assert client.attributes["network.peer.address"] == str(path)
    assert client.attributes["url.full"] == "http://app/x/0"
    assert server.attributes["network.local.address"] == str(path)
    assert server.attributes["server.address"] == "app", "the Host header"
    assert "client.address" not in server.attributes
    assert client.start_ns == server.start_ns and server.end_ns <= client.end_ns


def test_other_protocols_are_left_alone(tmp_path: Path) -> None:
    """A peer that speaks no HTTP, over and over: no span, and its bytes arrive."""
    path = tmp_path / "other.sock"
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "for n in range(23):\n"
        "    s.sendall(b'*1\\r\\n$4\\r\\nPING\\r\\n'); assert s.recv(9) == b'+PONG\\r\\n'\n"
    )
    with Traced() as traced, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        client = traced.spawn("client", [sys.executable, "-c", code, str(path)])
        peer, _ = listener.accept()
        with peer:
            for _ in range(23):
                assert peer.recv(100) == b"*1\r\n$4\r\nPING\r\n"
                peer.sendall(b"+PONG\r\n")
        assert client.wait(20) == 0
        assert not traced.wait_spans(0, settle=0.5)
        assert not traced.counters().get("requests_client")
