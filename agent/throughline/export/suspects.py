"""Batches of the spool that fail while the receiver takes others.

Such a batch must not stop those behind it: they get their turn, and it is given up in the end.
"""

from __future__ import annotations

from dataclasses import replace

from throughline.export.outcome import Outcome, Verdict

FAILURES = 3  # of one batch before the others get their turn
_MAX_BATCHES = 1024  # of which it is known how often they failed


class Suspects:
    """Not for several threads at once: the pipeline has a lock."""

    def __init__(self) -> None:
        # name of the batch -> how often it failed, and how many batches had been settled by then
        self._failed: dict[str, tuple[int, int]] = {}
        self._settled = 0

    def judge(self, name: str, outcome: Outcome) -> Outcome:
        """What an attempt means for the batch `name`; "" is one that is not in the spool.

        REFUSED where only this batch has failed, again and again.
        """
        if outcome.verdict is not Verdict.RETRY:
            self._settled += 1
            self._failed.pop(name, None)
            return outcome
        if not name or not outcome.suspicious:
            return outcome
        failures, settled = self._failed.pop(name, (0, self._settled))
        if failures >= FAILURES and self._settled > settled:
            return replace(outcome, verdict=Verdict.REFUSED)
        if len(self._failed) >= _MAX_BATCHES:  # of files that have made room since
            self._failed.clear()
        self._failed[name] = (failures + 1, self._settled)
        return outcome

    def gives_way(self, name: str) -> bool:
        """Whether the batch goes behind all others."""
        return self._failed.get(name, (0, 0))[0] >= FAILURES
