"""Steps of the agent's loop, none of which may end it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

log = logging.getLogger(__name__)


class Steps:
    """Runs steps by name. A step that fails is counted, logged the first time, and tried again at
    its next turn.

    `failures` has the counters `step_failed_NAME`. What a step has not done is what its caller has
    to live with: a step is a follower, a piece of housekeeping or a report, whose absence for a
    while loses no request.
    """

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()

    def run(self, name: str, step: Callable[[], object]) -> bool:
        """False: it has failed, with whatever exception."""
        try:
            step()
        except Exception as error:
            key = f"step_failed_{name}"
            self.failures[key] += 1
            if self.failures[key] == 1:
                # of the system's refusals the words are enough, of our own faults the place
                place = None if isinstance(error, OSError) else error
                log.error("%s failed: %s (counted, tried again)", name, error, exc_info=place)
            return False
        return True
