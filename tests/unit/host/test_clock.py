"""The offset between CLOCK_MONOTONIC and Unix time."""

from __future__ import annotations

import time

from throughline.host import clock


def test_the_tightest_reading_of_the_clocks_counts() -> None:
    """Two of five readings are interrupted, for 30 and 5 ms."""
    monotonic = iter(
        [0, 100, 200, 30_000_200, 30_000_300, 30_000_310, 40_000_000, 45_000_000, 7, 107]
    )
    unix = iter([1050, 29_001_200, 30_001_305, 40_901_000, 1057])
    found = clock.unix_offset_ns(monotonic=lambda: next(monotonic), unix=lambda: next(unix))
    assert found == 1000
    assert next(unix, None) is None


def test_a_step_of_the_clock_is_followed() -> None:
    now = clock.unix_offset_ns()
    stepped = clock.unix_offset_ns(unix=lambda: time.time_ns() + 3600 * 10**9)
    assert abs(stepped - now - 3600 * 10**9) < 10**9
