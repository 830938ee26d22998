"""The thread that accepts for a server of threads, known by what it is calling.

`python app.py` may run anything. But a thread that is in `serve_forever` of socketserver accepts
connections, and has each one served by a thread that it makes for it, or by itself, until
`serve_forever` returns: so do `app.run()` of Flask, `runserver` of Django and ThreadingHTTPServer.
That holds where the server's class has the functions that hand connections on from socketserver. In
the same way a thread that is in `serve` of cheroot (CherryPy) has each request read, handled and
answered by one thread of a pool.

The programs take nothing else of such a process for evidence: what other threads accept is the
application's own (bpf/runtimes/python_acceptor.h).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from throughline.runtimes.python.stack import Call, Frame, Stacks, is_file


@dataclass(frozen=True, slots=True)
class Server:
    """A library's server. Files are ends of paths."""

    loop: Call  # the thread that accepts is in this method of the server
    keeps: frozenset[str]  # methods that are the library's own
    worker: Call | None = None  # what threads of its pool are in, if it has one


class Acceptor(NamedTuple):
    """The thread that accepts. No thread: `id` is 0."""

    id: int
    pool: bool = False  # requests are read by threads that may be older


NONE = Acceptor(0)
_SERVERS = (
    Server(
        Call("socketserver.py", "serve_forever"),
        # _handle_request_noblock accepts, and calls process_request
        frozenset({"_handle_request_noblock", "process_request", "process_request_thread"}),
    ),
    Server(
        Call("cheroot/server.py", "serve"),
        frozenset({"process_conn", "put_conn", "serve", "start"}),
        Call("cheroot/workers/threadpool.py", "run"),
    ),
)
_ACCEPT = Call("socket.py", "accept")
_THREAD = tuple(Call("threading.py", name) for name in ("run", "_bootstrap_inner", "_bootstrap"))
# In a thread that serves each request on a thread, none of these calls is in another one.
_LOOPS = (*(server.loop for server in _SERVERS), Call("asyncio/base_events.py", "run_forever"))


def find(stacks: Stacks) -> Acceptor:
    """The thread that accepts, where there is one.

    The main thread, or else the only one that does so in a function. What Thread itself calls is an
    exporter beside something else (prometheus_client), whose threads would prove nothing any more.
    Raises OSError where the process cannot be read at this moment.
    """
    threads = stacks.threads()
    main = next(threads, None)
    calls = stacks.frames(main) if main and main.main else []
    if main is None or not calls:
        raise OSError(errno.EAGAIN, "the threads go on")
    server = _served(stacks, calls)
    if server and not server.worker:
        return Acceptor(main.id)
    stacked = {main.id: calls, **{thread.id: stacks.frames(thread) for thread in threads}}
    serving = {main.id: server} if server else _serving(stacks, stacked)
    if len(serving) != 1:
        return NONE
    ((number, server),) = serving.items()
    if server.worker is None:
        return Acceptor(number)
    del stacked[number]
    return Acceptor(number, True) if _has_pool(server.worker, list(stacked.values())) else NONE


def _serving(stacks: Stacks, stacked: Mapping[int, Sequence[Frame]]) -> dict[int, Server]:
    found = {number: _served(stacks, frames) for number, frames in stacked.items()}
    return {
        number: server
        for number, server in found.items()
        if server is not None and not _is_bare(stacked[number])
    }


def _served(stacks: Stacks, frames: Sequence[Frame]) -> Server | None:
    """The server for which a thread in these frames accepts; None: it is in none, or in several."""
    loops = [(frame, loop) for frame in frames for loop in _LOOPS if frame.call.is_of(loop)]
    if len(loops) != 1:
        return None
    ((frame, loop),) = loops
    server = next((server for server in _SERVERS if server.loop is loop), None)
    if server is None:
        return None
    files = stacks.methods(frame, server.keeps)
    own = all(is_file(file, loop.file) for file in files.values())
    return server if files and own else None


def _is_bare(frames: Sequence[Frame]) -> bool:
    """Has Thread itself called the loop?"""
    at = next(at for at, (call, _) in enumerate(frames) if any(map(call.is_of, _LOOPS)))
    outer = [call for call, _ in frames[at + 1 :]]
    return len(outer) == len(_THREAD) and all(map(Call.is_of, outer, _THREAD))


def _has_pool(worker: Call, stacked: Sequence[Sequence[Frame]]) -> bool:
    """Are these the threads of a pool, and others of which none is about to accept a connection?

    Threads of a pool may be older than what the programs see of others that accept.
    """
    accepts = any(frames and frames[0].call.is_of(_ACCEPT) for frames in stacked)
    return not accepts and any(call.is_of(worker) for frames in stacked for call, _ in frames)
