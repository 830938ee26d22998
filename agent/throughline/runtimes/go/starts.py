"""Whether a goroutine works for the request that started it, or for others too.

A goroutine that a request has started works for that request, unless it belongs to a pool. A
goroutine of a pool receives work from a channel, or waits on a condition variable, and then works
for the sender. So the agent looks at the function that a goroutine begins with: if that function or
one that it calls (two calls deep; calls by interfaces and function values are not seen) waits in
such a way, the goroutine is taken for one of a pool.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator

from throughline.elf.elf import Elf, MalformedError
from throughline.probes import arch
from throughline.runtimes.go import analysis, buildinfo
from throughline.runtimes.go.image import Image

# Functions that wait for others. The first four are `<-c`, `range c` and `select` in the source.
_WAITING = (
    *("runtime.chanrecv1", "runtime.chanrecv2", "runtime.selectgo", "runtime.selectnbrecv"),
    *("runtime.block", "sync.(*Cond).Wait", "sync.runtime_notifyListWait"),
    # A goroutine that sleeps and then looks for work.
    *("time.Sleep", "time.(*Timer).Reset"),
    *("reflect.chanrecv", "reflect.rselect"),
)
# Only the goroutine of one call of an HTTP/2 client calls these, although they wait too.
_OWN = (
    "net/http.(*http2clientStream).doRequest",
    "net/http/internal/http2.(*clientStream).doRequest",
    "golang.org/x/net/http2.(*clientStream).doRequest",
)
# Waits for the next request of its connection, so it works for no request.
_IDLE = ("net/http.(*connReader).backgroundRead",)
_DEPTH = 2
_MAX_FUNCTIONS = 256  # looked at for one goroutine's function
_MAX_CODE_BYTES = 1 << 16  # of each function
_MAX_CALLS = 1 << 14  # in all of them


class Starts:
    """The functions of the Go program in an open file. Raises as `analysis.analyse` does."""

    def __init__(self, fd: int, stop: threading.Event | None = None) -> None:
        elf = arch.open_elf(fd)
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
        """Does a goroutine whose first function is at this address (as linked) work for others?

        Yes where the address is not that of a function. The program is read from `fd`.
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
        """The end of the function that begins at `start`, both counted from the text's start.

        None where no function begins there.
        """
        index = bisect.bisect_left(self._functions, start)
        if index + 1 >= len(self._functions) or self._functions[index] != start:
            return None
        return self._functions[index + 1]

    def _targets(self, elf: Elf, start: int) -> Iterator[int]:
        """Where a function's calls lead. Some are random: few of those are starts of functions."""
        end = self._end(start)
        size = min((end or start) - start, _MAX_CODE_BYTES)
        code = elf.code(self._text + start, size)
        return (start + target for target in arch.here().branch_targets(code))
