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
from throughline.runtimes.python.stack import LAYOUTS, Call, Stacks

PID = 7
OTHER, THIRD = 0x7F02, 0x7F03
SITE = "/venv/lib/python3.11/site-packages"
SELECT = Call("/usr/lib/selectors.py", "select")
FOREVER = Call("/usr/lib/python3.11/socketserver.py", "serve_forever")
WERKZEUG = Call(f"{SITE}/werkzeug/serving.py", "serve_forever")
SIMPLE = Call(f"{SITE}/werkzeug/serving.py", "run_simple")
INNER = Call(f"{SITE}/werkzeug/serving.py", "inner")
FLASK = Call(f"{SITE}/flask/app.py", "run")
DJANGO = Call(f"{SITE}/django/core/servers/basehttp.py", "run")
PROGRAM = Call("/srv/app.py", "<module>")
ASYNCIO = Call("/usr/lib/python3.11/asyncio/base_events.py", "run_forever")
THREAD = [Call("/usr/lib/threading.py", name) for name in ("run", "_bootstrap_inner", "_bootstrap")]
RELOADS = [Call(f"{SITE}/werkzeug/_reloader.py", name) for name in ("run", "run_with_reloader")]
RELOADS += [SIMPLE, FLASK, PROGRAM]
RELOADED = [SELECT, FOREVER, WERKZEUG, *THREAD]
RUNS = [SELECT, FOREVER, WERKZEUG, SIMPLE, FLASK, PROGRAM]


def find(image: Image, folder: Path) -> int:
    (folder / str(PID)).mkdir(exist_ok=True)
    image.write(folder / str(PID))
    with Memory(PID, proc=folder) as memory:
        return acceptor.find(Stacks(memory, image.places, BASE))


def of(folder: Path, *stacks: tuple[int, Sequence[Call]], minor: int = 11) -> int:
    image = Image(minor)
    image.threads(stacks)
    return find(image, folder)


@pytest.mark.parametrize("minor", LAYOUTS)
def test_the_main_thread(tmp_path: Path, minor: int) -> None:
    others = [(OTHER, [SELECT, *THREAD]), (THIRD, [PROGRAM, *THREAD])]
    assert of(tmp_path, *others, (MAIN, RUNS), minor=minor) == MAIN
    assert of(tmp_path, *others, (MAIN, [SELECT, PROGRAM]), minor=minor) == 0


@pytest.mark.parametrize(
    "calls",
    [
        [FOREVER, WERKZEUG, SIMPLE, PROGRAM],
        [FOREVER, WERKZEUG, INNER, SIMPLE, PROGRAM],
        [SELECT, FOREVER, DJANGO, PROGRAM],
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
        [FOREVER, PROGRAM],
        [FOREVER, WERKZEUG, PROGRAM],
        [WERKZEUG, SIMPLE, PROGRAM],
        [FOREVER, SIMPLE, PROGRAM],
        [FOREVER, PROGRAM, WERKZEUG, SIMPLE],
        [Call("/srv/mysocketserver.py", "serve_forever"), *RUNS[2:]],
        [Call("/srv/serving.py", "serve_forever"), SIMPLE, PROGRAM],
        [Call("/home/josé/socketserver.py", "serve_forever"), *RUNS[2:]],
        # one server runs in another one, or in a loop of tasks
        [*RUNS[:-1], FOREVER, PROGRAM],
        [*RUNS[:-1], ASYNCIO, PROGRAM],
        # another thread than the main one would have to run that
        [FOREVER, WERKZEUG, *THREAD],
    ],
)
def test_other_programs(tmp_path: Path, calls: Sequence[Call]) -> None:
    assert of(tmp_path, (MAIN, calls)) == 0


def test_a_thread_of_the_reloader(tmp_path: Path) -> None:
    assert of(tmp_path, (OTHER, RELOADED), (MAIN, RELOADS)) == OTHER
    # the main thread does something else: the application has made the thread
    assert of(tmp_path, (OTHER, RELOADED), (MAIN, [SELECT, PROGRAM])) == 0
    # two of them
    assert of(tmp_path, (THIRD, RELOADED), (OTHER, RELOADED), (MAIN, RELOADS)) == 0
    # it was not made for that alone
    within = [SELECT, FOREVER, WERKZEUG, *THREAD, PROGRAM]
    with pytest.raises(OSError, match="go on"):
        of(tmp_path, (OTHER, within), (MAIN, RELOADS))


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
