"""The outcome of one attempt to export, and the totals of all attempts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

Item = TypeVar("Item")


class Verdict(Enum):
    """`REFUSED`: the batch is wrong, and is not sent again. `RETRY`: something else is wrong."""

    ACCEPTED = "accepted"
    RETRY = "retry"
    TOO_LARGE = "too_large"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Outcome:
    verdict: Verdict
    detail: str = ""  # for people: the answer of the receiver, or the error of the system
    retry_after: float = 0.0  # seconds, as the receiver asked; 0 when it did not
    rejected: int = 0  # items of an accepted batch that the receiver did not take
    suspicious: bool = False  # RETRY, but the batch may be the reason


ACCEPTED = Outcome(Verdict.ACCEPTED)


@dataclass(frozen=True, slots=True)
class Sender:
    """One signal's way out. `send` takes an encoded request, and blocks for about the timeout."""

    send: Callable[[bytes], Outcome]
    close: Callable[[], None]


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


def attempt(send: Callable[[Sequence[Item]], Outcome], spans: Sequence[Item]) -> Outcome:
    """Makes one attempt. A batch that is too large is cut in halves, down to single spans."""
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
