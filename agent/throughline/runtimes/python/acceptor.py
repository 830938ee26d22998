"""The thread that accepts for a server of threads, known by what it is calling.

`python app.py` may run anything. But a thread that is in `serve_forever` of socketserver, called by
`run_simple` of Werkzeug, accepts connections, and has each one served by a thread that it makes for
it, or by itself, until `run_simple` returns. So does `flask run`, which calls the same function.

The programs take nothing else of such a process for evidence: what other threads accept is the
application's own (bpf/runtimes/python.h).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from throughline.runtimes.python.stack import Call, Stacks


def _calls(file: str, *functions: str) -> tuple[Call, ...]:
    return tuple(Call(file, function) for function in functions)


_FOREVER = Call("socketserver.py", "serve_forever")
_WERKZEUG = Call("werkzeug/serving.py", "serve_forever")
_INNER = Call("werkzeug/serving.py", "inner")  # Werkzeug before 2.1
_RUN_SIMPLE = Call("werkzeug/serving.py", "run_simple")
_DJANGO = Call("django/core/servers/basehttp.py", "run")
_THREAD = tuple(Call("threading.py", name) for name in ("run", "_bootstrap_inner", "_bootstrap"))
# What the main thread is in while another one serves: it waits for changes of files.
_RELOADERS = (
    (*_calls("werkzeug/_reloader.py", "run", "run_with_reloader"), _RUN_SIMPLE),
    _calls("django/utils/autoreload.py", "run", "start_django", "run_with_reloader"),
)
# Each from the inner to the outer function: what a thread is in that serves for these frameworks,
_SERVING = (
    (_FOREVER, _WERKZEUG, _RUN_SIMPLE),
    (_FOREVER, _WERKZEUG, _INNER, _RUN_SIMPLE),
    (_FOREVER, _DJANGO),
)
# and what one is in that Werkzeug's reloader has made. Nothing else has called these.
_RELOADED = (
    (_FOREVER, _WERKZEUG, *_THREAD),
    (_FOREVER, _WERKZEUG, _INNER, *_THREAD),
)
# In a thread that serves each request on a thread, none of these calls is in another one.
_LOOPS = (_FOREVER, Call("asyncio/base_events.py", "run_forever"))


def find(stacks: Stacks) -> int:
    """The id of the thread, or 0 where there is none, or more than one.

    The main thread is looked at. Another one accepts where the main one waits for changes of files.
    Raises OSError where the process cannot be read at this moment.
    """
    threads = stacks.threads()
    main = next(threads, None)
    calls = stacks.calls(main) if main and main.main else []
    if main is None or not calls:
        raise OSError(errno.EAGAIN, "the threads go on")
    if _is_in(calls, _SERVING):
        return main.id
    if not any(_holds(calls, reloader) for reloader in _RELOADERS):
        return 0
    ways = (*_SERVING, *_RELOADED)
    found = [thread.id for thread in threads if _is_in(stacks.calls(thread), ways)]
    if not found:
        raise OSError(errno.EAGAIN, "the threads go on")
    return found[0] if len(found) == 1 else 0


def _is_in(calls: Sequence[Call], ways: Sequence[Sequence[Call]]) -> bool:
    """Is a thread with these calls in one of the ways, and in no other loop?"""
    at = next((at for at, call in enumerate(calls) if _same(call, _FOREVER)), None)
    if at is None:
        return False
    outer = calls[at:]
    if any(_same(call, loop) for call in outer[1:] for loop in _LOOPS):
        return False
    return any(
        _begins(outer, way) and (way[-1] != _THREAD[-1] or len(outer) == len(way)) for way in ways
    )


def _holds(calls: Sequence[Call], part: Sequence[Call]) -> bool:
    return any(_begins(calls[at:], part) for at in range(len(calls)))


def _begins(calls: Sequence[Call], part: Sequence[Call]) -> bool:
    return len(calls) >= len(part) and all(map(_same, calls, part))


def _same(call: Call, known: Call) -> bool:
    file, function = call
    return function == known.function and f"/{file}".endswith(f"/{known.file}")
