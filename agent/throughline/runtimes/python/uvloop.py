"""uvloop: where it keeps what a task writes, until the end of the loop's turn.

Before 0.23 the loop writes for all tasks together, in the context of none. The function is one of
Cython's, a local symbol, which the wheels keep; `write` and `writelines` call it.
Loop._queue_write, which it calls, is inlined.
"""

from __future__ import annotations

from throughline.probes import arch
from throughline.probes.site import Site, c_sites

_WRITES = "__pyx_f_6uvloop_4loop_8UVStream__initiate_write"  # UVStream._initiate_write(self)


def find(file: int) -> tuple[Site, ...]:
    """The site in an open file, without a cookie; none where it is not such a uvloop.

    Raises OSError and MalformedError.
    """
    elf = arch.open_elf(file)
    functions = elf.functions(_WRITES, []) if elf else {}
    if elf is None or not functions:
        return ()
    return c_sites(elf, functions[_WRITES].address, "tl_py_queued")
