"""Which goroutines take their work from others: told by what their first functions call.

A goroutine that a request has started works for that request, unless it is one of a pool: then it
receives work from a channel, or waits on a condition variable, and goes on for whoever sent it. A
function that does so itself, or in what it calls (two calls deep, without what is called by
interfaces and function values), is taken for one of those. Most others do their work and end.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator

from throughline.elf.elf import Elf, MalformedError
from throughline.runtimes.go import analysis, buildinfo
from throughline.runtimes.go.image import Image

# What waits for others: the compiler makes `<-c`, `range c` and `select` of the first four.
_WAITING = (
    *("runtime.chanrecv1", "runtime.chanrecv2", "runtime.selectgo", "runtime.selectnbrecv"),
    *("runtime.block", "sync.(*Cond).Wait", "sync.runtime_notifyListWait"),
    # sleeps, and looks for work then
    *("time.Sleep", "time.(*Timer).Reset"),
    *("reflect.chanrecv", "reflect.rselect"),
)
# What only one request's goroutine calls, although it waits, too: the call of an HTTP/2 client.
_OWN = (
    "net/http.(*http2clientStream).doRequest",
    "net/http/internal/http2.(*clientStream).doRequest",
    "golang.org/x/net/http2.(*clientStream).doRequest",
)
# Waits for the next request of its connection: it works for none.
_IDLE = ("net/http.(*connReader).backgroundRead",)
_DEPTH = 2
_MAX_FUNCTIONS = 256  # looked at for one start
_MAX_CODE_BYTES = 1 << 16  # of each
_MAX_CALLS = 1 << 14  # in all of them
_CALL, _JUMP = 0xE8, 0xE9


class Starts:
    """The functions of the Go program behind a descriptor. Raises as `golang.analyse` does."""

    def __init__(self, fd: int, stop: threading.Event | None = None) -> None:
        elf = Elf.open(fd)
        image = Image(elf, stop) if elf is not None else None
        info = buildinfo.read(image) if image is not None else None
        if elf is None or image is None or info is None:
            raise MalformedError("no Go program any more")
        table, module = analysis.locate(image, info.version)
        self._elf = elf.behind(-1)
        self._text = module.text
        self._functions = table.starts(image)
        found = table.lookup(image, [name.encode() for name in (*_WAITING, *_OWN, *_IDLE)])
        places = {
            name.decode(): {entry.start for entry in entries} for name, entries in found.items()
        }
        self._waiting = set().union(*(places.get(name, set()) for name in _WAITING))
        self._own = set().union(*(places.get(name, set()) for name in _OWN))
        self._idle = set().union(*(places.get(name, set()) for name in _IDLE))

    @property
    def kept_bytes(self) -> int:
        return self._functions.itemsize * len(self._functions)

    def receives(self, address: int, fd: int) -> bool:
        """Does a goroutine that begins at this address, as linked, take work from others?

        What is no function's address is taken for one that does. The program is read from `fd`.
        """
        elf = self._elf.behind(fd)
        start = address - self._text
        if self._end(start) is None or start in self._idle:
            return True
        level = [start]
        seen = {start}
        calls = 0
        for depth in range(_DEPTH + 1):
            called: set[int] = set()
            for function in level:
                for target in self._targets(elf, function):
                    calls += 1
                    if calls > _MAX_CALLS:
                        return True
                    if self._end(target) is not None:
                        called.add(target)
            if depth == 0 and called & self._own:
                return False
            if called & (self._waiting | self._idle):
                return True
            level = sorted(called - seen)
            seen.update(level)
            if len(seen) > _MAX_FUNCTIONS:
                return True
        return False

    def _end(self, start: int) -> int | None:
        """Where the function ends that begins at `start`, from the start of the text."""
        index = bisect.bisect_left(self._functions, start)
        if index + 1 >= len(self._functions) or self._functions[index] != start:
            return None
        return self._functions[index + 1]

    def _targets(self, elf: Elf, start: int) -> Iterator[int]:
        """Where a function's calls lead: what is no call leads to no start, but by chance."""
        end = self._end(start)
        size = min((end or start) - start, _MAX_CODE_BYTES)
        code = elf.code(self._text + start, size)
        for opcode in (_CALL, _JUMP):
            at = code.find(opcode)
            while 0 <= at <= len(code) - 5:
                distance = int.from_bytes(code[at + 1 : at + 5], "little", signed=True)
                yield start + at + 5 + distance
                at = code.find(opcode, at + 1)
