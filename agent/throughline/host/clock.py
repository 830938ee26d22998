"""The offset between CLOCK_MONOTONIC, which the BPF programs read, and Unix time, in spans."""

from __future__ import annotations

import time
from collections.abc import Callable

_READINGS = 5


def _monotonic() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def unix_offset_ns(
    *, monotonic: Callable[[], int] = _monotonic, unix: Callable[[], int] = time.time_ns
) -> int:
    """Unix time minus CLOCK_MONOTONIC, as it is now: steps of the clock change it.

    Each attempt reads Unix time between two readings of CLOCK_MONOTONIC and takes their middle. An
    interruption in between makes that wrong, so the attempt with the closest readings counts.
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
