"""Steps of the agent's loop, none of which may end it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator
from typing import TypeVar

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
# Work that takes long where others have made much of something: each turn takes about a
# millisecond, and the ring buffer is drained between turns.
Turns = Generator[None, None, _Result]


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
            self._failed(name, error)
            return False
        return True

    def turns(self, name: str, work: Turns[object]) -> Turns[None]:
        """The same for work that is done in turns."""
        try:
            yield from work
        except Exception as error:
            self._failed(name, error)

    def _failed(self, name: str, error: Exception) -> None:
        key = f"step_failed_{name}"
        self.failures[key] += 1
        if self.failures[key] == 1:
            # of the system's refusals the words are enough, of our own faults the place
            place = None if isinstance(error, OSError) else error
            log.error("%s failed: %s (counted, tried again)", name, error, exc_info=place)


def finish(work: Turns[_Result]) -> _Result:
    """Does all turns at once, and returns the result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: _Result = end.value
            return result
