"""When the agent looks at the host again: each second, and more often where services start.

A process that begins to serve calls listen(), which the programs tell (bpf/listeners.py).
Its first requests come soon after that, and maybe those of workers that it forks then.
"""

from __future__ import annotations

TICK_SECONDS = 1.0  # between two looks at the host
EARLY_SECONDS = 0.25  # the same, for HURRY_SECONDS after a process has begun to serve
HURRY_SECONDS = 1.5
# A host on which processes listen all the time (FTP, tests) has no more looks than these besides.
ALLOWED, ALLOWED_PER_SECOND = 40.0, 0.5


class Pace:
    """Says when a tick is due. All times are of one monotonic clock, in seconds."""

    def __init__(self, now: float) -> None:
        self._last = self._counted = now
        self._hurries_until = now
        self._allowed = ALLOWED

    def hurry(self, now: float) -> None:
        """A process has begun to serve."""
        self._hurries_until = now + HURRY_SECONDS

    def is_due(self, now: float) -> bool:
        """Is it time for a tick? Then it counts as begun."""
        early = now < self._last + TICK_SECONDS
        if early and not self._may_hurry(now):
            return False
        self._last = now
        self._allowed -= early
        return True

    def _may_hurry(self, now: float) -> bool:
        more = (now - self._counted) * ALLOWED_PER_SECOND
        self._allowed, self._counted = min(ALLOWED, self._allowed + more), now
        is_time = self._last + EARLY_SECONDS <= now < self._hurries_until
        return is_time and self._allowed >= 1
