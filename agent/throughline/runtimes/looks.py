"""When a provider looks at a process: often while it starts, and seldom then."""

from __future__ import annotations

from dataclasses import dataclass

START_SECONDS, SELDOM_SECONDS = 5.0, 10.0


@dataclass(slots=True)
class Looks:
    """Of one process. Times are of one monotonic clock, in seconds."""

    since: float  # when it was seen first
    often: float = START_SECONDS  # for so long it is looked at at each tick
    _next: float = 0.0

    def is_due(self, now: float) -> bool:
        """At each tick while it starts, and then every ten. Then it counts as looked at."""
        if now < self._next:
            return False
        if now >= self.since + self.often:
            self._next = now + SELDOM_SECONDS
        return True

    def is_settled(self, now: float) -> bool:
        """By now it has loaded what it runs."""
        return now >= self.since + START_SECONDS
