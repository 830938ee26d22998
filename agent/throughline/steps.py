"""Steps of the agent's loop, none of which may end it, and work that is done in turns."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator
from typing import TypeVar

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
# Work that takes long where others have made much of something. Each turn takes about a
# millisecond, and the ring buffer is drained between turns.
Turns = Generator[None, None, _Result]


class Steps:
    """Runs steps by name. A failure of a step is counted, and logged the first time.

    The caller tries the step again later. `failures` has the counters `step_failed_NAME`. A step is
    work whose failure loses no request: it follows something, keeps house, or reports.
    """

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()

    def run(self, name: str, step: Callable[[], object]) -> bool:
        """Runs a step; False when it has failed, with any exception."""
        try:
            step()
        except Exception as error:
            self._failed(name, error)
            return False
        return True

    def turns(self, name: str, work: Turns[object]) -> Turns[None]:
        """Runs a step that is done in turns."""
        try:
            yield from work
        except Exception as error:
            self._failed(name, error)

    def _failed(self, name: str, error: Exception) -> None:
        key = f"step_failed_{name}"
        self.failures[key] += 1
        if self.failures[key] == 1:
            # a refusal of the system explains itself; a fault of ours needs its traceback
            place = None if isinstance(error, OSError) else error
            log.error("%s failed: %s (counted, tried again)", name, error, exc_info=place)


class Work:
    """One piece of work in turns that has begun, if any."""

    def __init__(self) -> None:
        self._turns: Turns[None] | None = None

    @property
    def is_done(self) -> bool:
        """Returns whether there is nothing to go on with."""
        return self._turns is None

    def begin(self, turns: Turns[None]) -> None:
        """Takes the next piece of work; the last one is done."""
        assert self._turns is None
        self._turns = turns

    def go_on(self, *, seconds: float) -> None:
        """Does turns until the work is done or this time is over."""
        until = time.monotonic() + seconds
        for _ in self._turns or ():
            if time.monotonic() >= until:
                return
        self._turns = None

    def finish(self) -> None:
        """Does all turns that are left."""
        for _ in self._turns or ():
            pass
        self._turns = None

    def abandon(self) -> None:
        """Leaves out the turns that are left."""
        if self._turns is not None:
            self._turns.close()
        self._turns = None


def finish(work: Turns[_Result]) -> _Result:
    """Does all turns at once, and returns the result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: _Result = end.value
            return result
