"""When a provider looks at a process: often while it starts, and when it begins to serve."""

from __future__ import annotations

from dataclasses import dataclass

START_SECONDS, SELDOM_SECONDS = 5.0, 10.0


@dataclass(slots=True)
class Looks:
    """Of one process. Times are of one monotonic clock, in seconds."""

    since: float  # when it was seen first
    often: float = START_SECONDS  # for so long it is looked at at each tick
    _next: float = 0.0
    _listens: int = 0
    _listens_until: float = 0.0

    def is_due(self, now: float, listens: int = 0) -> bool:
        """At each tick while it starts, and then every ten. Then it counts as looked at.

        `listens`: Process.listens. What has begun to listen is about to run its server.
        """
        if listens != self._listens:
            self._listens, self._listens_until = listens, now + START_SECONDS
            self._next = now
        elif now < self._next:
            return False
        if now >= max(self.since + self.often, self._listens_until):
            self._next = now + SELDOM_SECONDS
        return True

    def is_settled(self, now: float) -> bool:
        """By now it has loaded what it runs."""
        return now >= self.since + START_SECONDS
