"""What became of one attempt to export, and of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Verdict(Enum):
    """`REFUSED` blames the batch, so it is never sent again; `RETRY` blames everything else."""

    ACCEPTED = "accepted"
    RETRY = "retry"
    TOO_LARGE = "too_large"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Outcome:
    verdict: Verdict
    detail: str = ""  # for people: what the receiver or the system said
    retry_after: float = 0.0  # seconds, as the receiver asked; 0 when it did not
    rejected: int = 0  # items of an accepted batch that the receiver did not take
    suspicious: bool = False  # RETRY, but it may be this batch that the receiver cannot digest


ACCEPTED = Outcome(Verdict.ACCEPTED)


@dataclass(frozen=True, slots=True)
class ExportStatus:
    """The totals since start, as `throughline status` shows them; `dropped` counts by reason."""

    state: str  # "idle" | "up" | "down" | "off"
    exported_spans: int
    failed_batches: int
    queued_spans: int
    spool_bytes: int
    spool_batches: int
    dropped: dict[str, int]
    last_error: str

    def as_json(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "exported_spans": self.exported_spans,
            "failed_batches": self.failed_batches,
            "queued_spans": self.queued_spans,
            "spool_bytes": self.spool_bytes,
            "spool_batches": self.spool_batches,
            "dropped_spans": sum(self.dropped.values()),
            "dropped": self.dropped,
            "last_error": self.last_error,
        }


def attempt(send: Callable[[Any], Outcome], spans: Sequence[Any]) -> Outcome:
    """One attempt; a batch that is too large is cut in halves, down to single spans."""
    if not spans:
        return ACCEPTED
    outcome = send(spans)
    if outcome.verdict is not Verdict.TOO_LARGE:
        return outcome
    if len(spans) == 1:
        return Outcome(Verdict.REFUSED, outcome.detail)
    half = len(spans) // 2
    rejected = 0
    for part in (spans[:half], spans[half:]):
        outcome = attempt(send, part)
        if outcome.verdict is Verdict.RETRY:
            return outcome
        rejected += len(part) if outcome.verdict is Verdict.REFUSED else outcome.rejected
    return Outcome(Verdict.ACCEPTED, outcome.detail, rejected=rejected)
