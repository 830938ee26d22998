"""Which thread accepts for a server of threads, by the frames of a process; garbage is refused."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fixtures.frames import BASE, HEAP, MAIN, RUNTIME, Image
from throughline.host.memory import Memory
from throughline.runtimes.python import acceptor
from throughline.runtimes.python.acceptor import Acceptor
from throughline.runtimes.python.stack import LAYOUTS, Call, Stacks

PID = 7
OTHER, THIRD = 0x7F02, 0x7F03
SITE = "/venv/lib/python3.11/site-packages"
SELECT = Call("/usr/lib/selectors.py", "select")
FOREVER = Call("/usr/lib/python3.11/socketserver.py", "serve_forever")
WERKZEUG = Call(f"{SITE}/werkzeug/serving.py", "serve_forever")
SIMPLE = Call(f"{SITE}/werkzeug/serving.py", "run_simple")
FLASK = Call(f"{SITE}/flask/app.py", "run")
DJANGO = Call(f"{SITE}/django/core/servers/basehttp.py", "run")
PROGRAM = Call("/srv/app.py", "<module>")
ASYNCIO = Call("/usr/lib/python3.11/asyncio/base_events.py", "run_forever")
THREAD = [Call("/usr/lib/threading.py", name) for name in ("run", "_bootstrap_inner", "_bootstrap")]
RELOADS = [Call(f"{SITE}/werkzeug/_reloader.py", "run"), SIMPLE, FLASK, PROGRAM]
RELOADED = [SELECT, FOREVER, WERKZEUG, *THREAD]
RUNS = [SELECT, FOREVER, WERKZEUG, SIMPLE, FLASK, PROGRAM]
EXPORTER = [SELECT, FOREVER, *THREAD]
CHEROOT = Call(f"{SITE}/cheroot/server.py", "serve")
WORKER = [
    Call("/usr/lib/queue.py", "get"),
    Call(f"{SITE}/cheroot/workers/threadpool.py", "run"),
    *THREAD[1:],
]
ACCEPTS = [Call("/usr/lib/socket.py", "accept"), PROGRAM, *THREAD]


def find(image: Image, folder: Path) -> Acceptor:
    (folder / str(PID)).mkdir(exist_ok=True)
    image.write(folder / str(PID))
    with Memory(PID, proc=folder) as memory:
        return acceptor.find(Stacks(memory, image.places, BASE))


def of(folder: Path, *stacks: tuple[int, Sequence[Call]], minor: int = 11) -> int:
    image = Image(minor)
    image.threads(stacks)
    found = find(image, folder)
    assert not found.pool
    return found.id


@pytest.mark.parametrize("minor", LAYOUTS)
def test_the_main_thread(tmp_path: Path, minor: int) -> None:
    others = [(OTHER, [SELECT, *THREAD]), (THIRD, [PROGRAM, *THREAD])]
    assert of(tmp_path, *others, (MAIN, RUNS), minor=minor) == MAIN
    assert of(tmp_path, *others, (MAIN, [SELECT, PROGRAM]), minor=minor) == 0


@pytest.mark.parametrize(
    "calls",
    [
        [FOREVER, WERKZEUG, SIMPLE, PROGRAM],
        [SELECT, FOREVER, DJANGO, PROGRAM],
        [SELECT, FOREVER, PROGRAM],
        # it serves the request itself
        [Call("/srv/site.py", "view"), FOREVER, WERKZEUG, SIMPLE, FLASK, PROGRAM],
        # the names of files as PyInstaller has them
        [Call("socketserver.py", "serve_forever"), *RUNS[2:]],
    ],
)
def test_servers(tmp_path: Path, calls: Sequence[Call]) -> None:
    assert of(tmp_path, (MAIN, calls)) == MAIN


@pytest.mark.parametrize(
    "calls",
    [
        [PROGRAM],
        [WERKZEUG, SIMPLE, PROGRAM],
        [Call("/srv/mysocketserver.py", "serve_forever"), *RUNS[2:]],
        [Call("/home/josé/socketserver.py", "serve_forever"), *RUNS[2:]],
        # one server runs in another one, or in a loop of tasks
        [*RUNS[:-1], FOREVER, PROGRAM],
        [*RUNS[:-1], CHEROOT, PROGRAM],
        [*RUNS[:-1], ASYNCIO, PROGRAM],
        # it has no threads of a pool
        [SELECT, CHEROOT, PROGRAM],
    ],
)
def test_other_programs(tmp_path: Path, calls: Sequence[Call]) -> None:
    assert of(tmp_path, (MAIN, calls)) == 0


@pytest.mark.parametrize("minor", LAYOUTS)
@pytest.mark.parametrize("name", ["process_request", "_handle_request_noblock"])
@pytest.mark.parametrize("file", ["/srv/app.py", "/srv/mysocketserver.py", ""])
def test_a_class_that_hands_connections_on_in_its_own_way(
    tmp_path: Path, minor: int, name: str, file: str
) -> None:
    image = Image(minor)
    own = dict.fromkeys(("process_request", "_handle_request_noblock"), FOREVER.file)
    kinds = image.kind({"get_request": "/srv/app.py", name: file}), image.kind(own)
    for order, expected in ((kinds, 0), (kinds[::-1], MAIN)):
        image.instances[FOREVER] = image.instance(*order)
        image.threads([(MAIN, RUNS)])
        assert find(image, tmp_path).id == expected


def test_a_class_of_an_extension(tmp_path: Path) -> None:
    image = Image(12)
    own = image.kind({"process_request": FOREVER.file})
    image.instances[FOREVER] = image.instance(own, image.kind({}, 0))
    image.threads([(MAIN, RUNS)])
    with pytest.raises(OSError, match="not written in Python"):
        find(image, tmp_path)


def test_another_thread(tmp_path: Path) -> None:
    assert of(tmp_path, (OTHER, RELOADED), (MAIN, RELOADS)) == OTHER
    # an exporter, beside a server that is not known
    assert of(tmp_path, (OTHER, EXPORTER), (MAIN, [SELECT, PROGRAM])) == 0
    # two of them, of which one is an exporter
    assert of(tmp_path, (THIRD, EXPORTER), (OTHER, RELOADED), (MAIN, RELOADS)) == OTHER
    assert of(tmp_path, (THIRD, EXPORTER), (OTHER, RUNS), (MAIN, RUNS)) == MAIN
    for calls in (EXPORTER, RELOADED):
        assert of(tmp_path, (THIRD, calls), (OTHER, calls), (MAIN, RELOADS)) == 0


@pytest.mark.parametrize("minor", LAYOUTS)
def test_a_server_with_a_pool(tmp_path: Path, minor: int) -> None:
    runs, serves = (MAIN, [SELECT, CHEROOT, PROGRAM]), (OTHER, [SELECT, CHEROOT, PROGRAM, *THREAD])
    waits, works = (MAIN, [SELECT, PROGRAM]), (THIRD, WORKER)
    for stacks, number in (((works, runs), MAIN), ((works, serves, waits), OTHER)):
        image = Image(minor)
        image.threads(stacks)
        assert find(image, tmp_path) == Acceptor(number, True)
        # another thread accepts, where it may have begun before
        image.threads([(0x7F04, ACCEPTS), *stacks])
        assert find(image, tmp_path).id == 0
    # it hands requests to another pool
    image = Image(minor)
    own = image.kind({"serve": CHEROOT.file, "process_conn": "/srv/app.py"})
    image.instances[CHEROOT] = image.instance(own)
    image.threads([works, runs])
    assert find(image, tmp_path).id == 0


def test_threads_that_go_on(tmp_path: Path) -> None:
    """A thread whose frames are gone, and a list of threads that ends too early."""
    lists: list[list[tuple[int, list[Call]]]] = [[(MAIN, [])], [(OTHER, RUNS)], []]
    for stacks in lists:
        with pytest.raises(OSError, match="go on"):
            of(tmp_path, *stacks)


@pytest.mark.parametrize("minor", LAYOUTS)
def test_endless_lists_end(tmp_path: Path, minor: int) -> None:
    image = Image(minor)
    image.threads([(OTHER, RUNS), (MAIN, RUNS)])
    for at in range(HEAP, len(image.data), 8):
        (word,) = struct.unpack_from("<Q", image.data, at)
        if word > HEAP:
            one = Image(minor)
            one.data = bytearray(image.data)
            one.words(at, at & ~0xFF)
            with contextlib.suppress(OSError):
                find(one, tmp_path)


@pytest.mark.parametrize("minor", LAYOUTS)
def test_garbage(tmp_path: Path, minor: int) -> None:
    """Whatever the memory holds, the answer is a thread of the list, none, or an OSError."""
    number = random.Random(minor)
    image = Image(minor)
    image.threads([(OTHER, RELOADED), (MAIN, RUNS)])
    whole = bytes(image.data)
    for _ in range(300):
        image.data = bytearray(whole)
        for _ in range(number.randrange(1, 40)):
            at = number.choice((RUNTIME, HEAP)) + 8 * number.randrange(300)
            if at + 8 <= len(image.data):
                values = (0, 1, HEAP, number.randrange(1 << 64), number.randrange(len(whole)))
                image.words(at, number.choice(values))
        image.data = image.data[: number.choice((len(whole), number.randrange(len(whole))))]
        with contextlib.suppress(OSError):
            find(image, tmp_path)
    image.data = bytearray(number.randbytes(len(whole)))
    with contextlib.suppress(OSError):
        find(image, tmp_path)
