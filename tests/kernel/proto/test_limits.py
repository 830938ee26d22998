"""Requests near the limits of servers: a request that gets 200 untraced gets 200 traced.

Each server is asked twice, by a client outside of the traced cgroup and by one inside of it.
"""

from __future__ import annotations

import shutil
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.fixtures.counting import Counting
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.service import World
from tests.fixtures.sockets import connect
from tests.fixtures.traced import Traced
from tests.fixtures.waiting import until
from tests.fixtures.wire import PARENT, TRACE, Context, head, send_alone

#: answers 200 and says whether the request had a traceparent
WSGI = """
def app(environ, start):
    body = b"traced" if "HTTP_TRACEPARENT" in environ else b"plain"
    start("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
NODE = """
require("http").createServer((request, response) =>
    response.end("traceparent" in request.headers ? "traced" : "plain")
).listen(Number(process.argv[1]), "127.0.0.1");
"""
PYTHON = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"traced" if "traceparent" in self.headers else b"plain"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
HAPROXY = """
defaults
    mode http
    timeout client 10s
    timeout server 10s
    timeout connect 10s
frontend front
    bind 127.0.0.1:{port}
    http-request return status 200 string traced content-type text/plain if {{ req.fhdr(traceparent) -m found }}
    http-request return status 200 string plain content-type text/plain
"""  # noqa: E501

Ask = Callable[[bytes], tuple[str, str]]


def fields(count: int, *, size: int = 0) -> bytes:
    """A request of so many header fields; its last field fills it up to `size` bytes."""
    lines = [f"X-{number}: y" for number in range(count - 2)]
    bare = len(head(*lines, "Fill: "))
    return head(*lines, "Fill: " + "z" * max(size - bare, 1))


def answer(client: socket.socket, port: int, request: bytes) -> str:
    """The status and, of a 200, what the server says about the header: `200 traced`."""
    with closing(client):
        client.settimeout(10)
        client.connect(("127.0.0.1", port))
        client.sendall(request)
        received = b""
        while not received.endswith((b"traced", b"plain")):
            more = client.recv(65536)
            if not more:
                break
            received += more
    status = received[9:12].decode()
    return f"200 {received.rpartition(chr(10).encode())[2].decode()}" if status == "200" else status


@pytest.fixture
def ask(world: World) -> Callable[[int], Ask]:
    """Asks a port from outside and from inside the traced cgroup."""

    def of(port: int) -> Ask:
        return lambda request: (
            answer(world[2].make(), port, request),
            answer(socket.socket(), port, request),
        )

    return of


def start(world: World, name: str, command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    world[0].spawn(name, command)


@pytest.fixture(scope="module")
def gunicorn(world: World, tmp_path_factory: pytest.TempPathFactory) -> int:
    directory = tmp_path_factory.mktemp("gunicorn")
    (directory / "answers.py").write_text(WSGI)
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--chdir", str(directory), "--log-level", "error"]
    start(world, "gunicorn", [*command, "-b", f"127.0.0.1:{port}", "--no-control-socket",
                              "answers:app"])  # fmt: skip
    wait_port(port)
    return port


@pytest.fixture(scope="module")
def node(world: World) -> int:
    port = free_port()
    start(world, "node", ["node", "-e", NODE, str(port)])
    wait_port(port)
    return port


@pytest.fixture(scope="module")
def http_server(world: World) -> int:
    port = free_port()
    start(world, "http-server", [sys.executable, "-c", PYTHON, str(port)])
    wait_port(port)
    return port


@pytest.fixture(scope="module")
def haproxy(world: World, tmp_path_factory: pytest.TempPathFactory) -> int:
    port = free_port()
    config: Path = tmp_path_factory.mktemp("haproxy") / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port))
    start(world, "haproxy", ["haproxy", "-db", "-q", "-f", str(config)])
    wait_port(port)
    return port


@pytest.mark.parametrize("server", ["gunicorn", "node", "http_server", "haproxy"])
def test_number_of_fields(
    world: World, ask: Callable[[int], Ask], request: pytest.FixtureRequest, server: str
) -> None:
    asked = ask(request.getfixturevalue(server))
    count = Counting(world[0])
    answers = {number: asked(fields(number)) for number in range(96, 104)}
    assert not {n: pair for n, pair in answers.items() if pair[0][:3] != pair[1][:3]}
    traced = {number for number, (_, inside) in answers.items() if inside == "200 traced"}
    assert {96, 97, 98} <= traced, answers
    assert not traced & {99, 100}, answers
    assert count("skip_near_limit", 2) == 2


@pytest.mark.parametrize("server", ["gunicorn", "node", "http_server", "haproxy"])
@pytest.mark.parametrize("lines", [3, 40])
def test_size_of_the_header_block(
    world: World, ask: Callable[[int], Ask], request: pytest.FixtureRequest, server: str, lines: int
) -> None:
    """8,000 to 8,300 and 14,800 to 16,600 bytes: every answer is that of the untraced request."""
    asked = ask(request.getfixturevalue(server))
    sizes = [*range(8000, 8300, 50), *range(14_800, 16_600, 37), 16_350, 16_384]
    answers = {size: asked(fields(lines, size=size)) for size in sizes}
    assert not {n: pair for n, pair in answers.items() if pair[0][:3] != pair[1][:3]}


def test_node_just_below_16_kb(world: World, ask: Callable[[int], Ask], node: int) -> None:
    """Near the limit a request is left alone, and counted: with a header it would get 431."""
    count = Counting(world[0])
    assert ask(node)(fields(3, size=16_350)) == ("200 plain", "200 plain")
    assert count("skip_near_limit", 1) == 1


#: bytes that a header line takes
TRACEPARENT = 70
TRACESTATE = len("tracestate: a=1\r\n")


@pytest.mark.parametrize("limit", [8192, 16384])
def test_exactly_where_it_begins(world: World, far_listener: socket.socket, limit: int) -> None:
    """The last request that is written into has one byte less than the limit, with our line."""
    count = Counting(world[0])
    room = limit - TRACEPARENT
    assert send_alone(far_listener, [fields(3, size=room - 1)]).trace_id
    assert send_alone(far_listener, [fields(3, size=room)]) == Context()
    assert send_alone(far_listener, [fields(3, size=limit)]) == Context()
    assert count("skip_near_limit", 2) == 2
    # above the limit however it is counted: our header is not the cause
    if limit == 8192:
        assert send_alone(far_listener, [fields(3, size=limit + 100)]).trace_id


def test_tracestate_counts(world: World) -> None:
    """98 fields and two lines of ours are 100, which is too many for Python's http.server."""
    traced, service, outside = world
    incoming = head(f"traceparent: 00-{TRACE}-{PARENT}-01", "tracestate: a=1")
    count = Counting(traced)
    with outside.listen() as listener:
        for number, wanted in ((97, True), (98, False)):
            with outside.connect(service.front) as client, service.front.accept()[0] as server:
                client.sendall(incoming)
                server.recv(4096)
                found = send_alone(listener, [fields(number)])
                assert bool(found.tracestate) == bool(found.trace_id) == wanted, number
                server.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                client.recv(4096)
    assert count("skip_near_limit", 1) == 1


def reload(traced: Traced) -> None:
    assert traced.agent is not None
    before = traced.status()
    traced.agent.send_signal(signal.SIGHUP)
    until(
        lambda: (traced.status() or {}).get("started_unix"),
        enough=lambda found: before and found not in (None, before["started_unix"]),
        otherwise=traced.log,
    )


def test_the_setting_follows_a_reload(ask: Callable[[int], Ask], world: World) -> None:
    """`ignore` writes into what fits a buffer, whatever the server says; on sockets that are open, too."""  # noqa: E501
    traced, _, outside = world
    with outside.listen() as listener, connect(listener) as near, listener.accept()[0] as far:

        def sent() -> bytes:
            near.sendall(fields(100))
            received = b""
            while b"\r\n\r\n" not in received:
                received += far.recv(65536)
            far.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            near.recv(4096)
            return received

        assert b"traceparent" not in sent()
        for limits, written in (("ignore", True), ("respect", False)):
            traced.configure(propagation={"limits": limits})
            reload(traced)
            assert (b"\r\ntraceparent: 00-" in sent()) == written
