"""Calls before and after the end of an answer that waits: the client reads slowly.

A call after the whole answer was written has no parent. One between two parts has its request as
parent where nothing else can be meant.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence

import pytest

from tests.fixtures import needs
from tests.fixtures.paths import SERVICES
from tests.parents.app import App, Behaviour, Place, Process
from tests.parents.cell import Bench, Instance, bench
from tests.parents.judge import number_of
from tests.parents.python import environment
from throughline.features.objects import REFUSE

REQUESTS, AT_ONCE = 101, 8
PAUSE_SECONDS = 0.01


class Clients:
    """Several connections, each of which asks and reads slowly."""

    def __init__(self, port: int, path: str, numbers: Sequence[int]) -> None:
        self._left = iter(numbers)
        self._lock = threading.Lock()
        self._port, self._path = port, path
        self.failures: list[str] = []
        threads = [threading.Thread(target=self._work) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _next(self) -> int | None:
        with self._lock:
            return next(self._left, None)

    def _work(self) -> None:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
            client.settimeout(20)
            client.connect(("127.0.0.1", self._port))
            while (number := self._next()) is not None:
                try:
                    self._ask(client, number)
                except OSError as error:
                    self.failures.append(f"{number}: {error}")
                    return

    def _ask(self, client: socket.socket, number: int) -> None:
        client.sendall(f"GET {self._path}?id={number} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data:
            data += client.recv(4096)
        head, _, body = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
        time.sleep(PAUSE_SECONDS)
        pauses, read, end = 3, len(body), body[-5:]
        while read < int(length) if length else end != b"0\r\n\r\n":
            if pauses:
                time.sleep(PAUSE_SECONDS)
                pauses -= 1
            more = client.recv(65536)
            if not more:
                raise OSError(f"the answer ends after {read} bytes")
            read += len(more)
            end = (end + more)[-5:]


def service(kind: str, sndbuf: int) -> App:
    def start(_place: Place) -> Sequence[Process]:
        variables = {**environment.environment(), "SNDBUF": str(sndbuf)}
        return [Process([environment.python(), str(SERVICES / "answers.py"), kind], "", variables)]

    return App(
        name=f"answers-{kind}-{sndbuf}",
        runtime="Python",
        title=kind,
        start=start,
        install=environment.install,
        follows="python",
        accepts=kind == "threads",
    )


def ask(running: Bench, instance: Instance, path: str, first: int) -> tuple[int, int, int]:
    """Right, wrong, none: the calls of the requests with the numbers from `first` on."""
    numbers = range(first, first + REQUESTS)
    running.traced.receiver.forget_spans()
    clients = Clients(instance.place.port, path, numbers)
    assert not clients.failures
    spans = running.traced.wait_spans(
        2 * REQUESTS, where=lambda span: number_of(span.path) in numbers
    )
    served = {span.span_id: span.path for span in spans if span.kind == "SERVER"}
    called = [span for span in spans if span.kind == "CLIENT"]
    assert (len(served), len(called)) == (REQUESTS, REQUESTS)
    own = [span for span in called if span.parent_span_id]
    right = [s for s in own if number_of(served[s.parent_span_id]) == number_of(s.path)]
    return len(right), len(own) - len(right), len(called) - len(own)


@pytest.fixture(params=["asyncio", "aiohttp", "uvicorn", "threads"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("sndbuf", [0, 40_000], ids=["roomy", "full"])
def test_calls(running: Bench, kind: str, sndbuf: int) -> None:
    """In a small buffer a part of the answer finds no place, and an event loop keeps it."""
    needs.program("tl_sent")
    app = service(kind, sndbuf)
    app.install()
    found = {}
    with running.instance(app, Behaviour.AT_ONCE) as instance:
        for number, path in enumerate(("/large", "/later", "/whole", "/parts", "/chunked")):
            found[path] = ask(running, instance, path, 1000 * (number + 1))
    for path in ("/large", "/later", "/whole"):
        assert found[path] == (0, 0, REQUESTS), (path, found)
    assert found["/parts"][1] == found["/chunked"][1] == 0, found
    if kind == "threads" or not sndbuf:
        assert found["/parts"] == (REQUESTS, 0, 0), found
    if kind != "threads" and not sndbuf:
        assert found["/chunked"] == (REQUESTS, 0, 0), found


@pytest.mark.timeout(240)
def test_where_sends_are_not_seen_a_begun_answer_ends_the_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the program keeps of an answer is not known there, nor where chunks end."""
    monkeypatch.setenv(REFUSE, "tl_sent")
    with bench("proven") as unseen:
        for kind, sndbuf in (("asyncio", 0), ("asyncio", 40_000), ("threads", 0)):
            app = service(kind, sndbuf)
            app.install()
            with unseen.instance(app, Behaviour.AT_ONCE) as instance:
                for number, path in enumerate(("/large", "/later", "/whole", "/parts", "/chunked")):
                    found = ask(unseen, instance, path, 1000 * (number + 1))
                    assert found == (0, 0, REQUESTS), (kind, sndbuf, path, found)
