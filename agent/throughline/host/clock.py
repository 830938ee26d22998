"""The kernel's clock and ours: the programs take times by CLOCK_MONOTONIC, spans want Unix time."""

from __future__ import annotations

import time
from collections.abc import Callable

_READINGS = 5


def _monotonic() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def unix_offset_ns(
    *, monotonic: Callable[[], int] = _monotonic, unix: Callable[[], int] = time.time_ns
) -> int:
    """Unix time minus CLOCK_MONOTONIC, now: it follows each step of the clock.

    Unix time is read between two readings of CLOCK_MONOTONIC, whose middle it belongs to. Whoever
    is interrupted in between is wrong by as much, so the tightest of several attempts counts.
    """
    best = offset = None
    for _ in range(_READINGS):
        before = monotonic()
        now = unix()
        after = monotonic()
        if best is None or after - before < best:
            best, offset = after - before, now - (before + after) // 2
    assert offset is not None
    return offset
