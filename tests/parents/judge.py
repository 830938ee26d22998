"""Right, wrong, none: each call that reached the backend, by the spans that were exported."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.fixtures.spans import Span
from tests.parents.app import Behaviour
from tests.parents.driver import calls_after_answer

RIGHT, WRONG, NONE = "right", "wrong", "none"
_NUMBER = re.compile(r"[?&]id=(\d+)")
_POLL = "/poll?"
# Each of these says that a call has no parent. The skipped ones are on sockets that sk_msg does not
# see, so that no thread is known.
# A job of a queue is a parent, but no request.
_NO_PARENT_COUNTERS = ("root_", "skip_not_enrolled", "skip_mptcp", "skip_pipelined", "parent_job")


@dataclass(slots=True)
class Result:
    """What was seen of one application, one behaviour and one number of concurrent requests."""

    concurrent: int
    requests: int
    calls: int = 0
    right: int = 0
    wrong: int = 0
    none: int = 0
    unseen: int = 0  # of `none`: calls without a client span
    no_header: int = 0
    evidence: dict[str, int] = field(default_factory=dict)  # "right by thread": how many
    reasons: dict[str, int] = field(default_factory=dict)  # counters that have grown
    failures: list[str] = field(default_factory=list)  # requests that failed
    examples: list[str] = field(default_factory=list)  # of wrong ones

    @property
    def unexplained(self) -> int:
        """How many calls have no parent, and no counter that says why."""
        said = sum(
            total for name, total in self.reasons.items() if name.startswith(_NO_PARENT_COUNTERS)
        )
        return max(0, self.none - self.unseen - said)

    def json(self) -> dict[str, Any]:
        """Without what is empty."""
        return {name: value for name, value in asdict(self).items() if value not in ({}, [])}


def number_of(target: str) -> int | None:
    """The request's number in a path."""
    found = _NUMBER.search(target)
    return int(found[1]) if found else None


class _Spans:
    """The spans of one application's services, in the order in which a request passes them."""

    def __init__(self, spans: Iterable[Span], services: Sequence[str]) -> None:
        self.services = services
        self.by_id: dict[str, Span] = {}
        self.servers: dict[tuple[str, int], list[Span]] = defaultdict(list)
        self.clients: dict[tuple[str, str], list[Span]] = defaultdict(list)
        for span in spans:
            number = number_of(span.path)
            if span.service not in services or number is None:
                continue
            self.by_id[span.span_id] = span
            if span.kind == "SERVER":
                self.servers[span.service, number].append(span)
            else:
                self.clients[span.service, span.path].append(span)

    def follow(self, call: Span, number: int) -> str:
        """Follows a call's parents up to the first service."""
        hop = call
        for service in reversed(self.services):
            if self._is_passed_on(hop, number):
                return RIGHT
            parent = self._parent(hop, self.servers[service, number])
            if isinstance(parent, str):
                return parent
            if service == self.services[0]:
                return RIGHT if parent.trace_id == call.trace_id else WRONG
            before = self.services[self.services.index(service) - 1]
            callers = [
                span
                for (name, path), found in self.clients.items()
                if name == before and number_of(path) == number
                for span in found
            ]
            caller = self._parent(parent, callers)
            if isinstance(caller, str):
                return caller
            hop = caller
        return RIGHT

    def _is_passed_on(self, call: Span, number: int) -> bool:
        """A proxy has passed on the header with which it was asked: the caller is the parent."""
        parent = self.by_id.get(call.parent_span_id)
        return call.evidence == "header" and parent is not None and number_of(parent.path) == number

    def fits(self, header: str, call: Span, number: int | None) -> bool:
        """Whether a header says the call's span, or one that a proxy was asked with."""
        _, trace, parent, _ = header.split("-")
        before = self.by_id.get(parent)
        return trace == call.trace_id and (
            parent == call.span_id or (before is not None and number_of(before.path) == number)
        )

    def _parent(self, span: Span, candidates: Sequence[Span]) -> Span | str:
        """The one of the candidates that is the parent, else WRONG or NONE."""
        for candidate in candidates:
            if candidate.span_id == span.parent_span_id:
                return candidate
        if not span.parent_span_id:
            return NONE
        # a parent of which there is no span, and no span that should have been it: nothing is known
        return WRONG if candidates or span.parent_span_id in self.by_id else NONE


def judge(
    result: Result,
    taken: Sequence[tuple[str, str]],
    spans: Iterable[Span],
    *,
    services: Sequence[str],
    behaviour: Behaviour,
) -> None:
    """Counts each noted request of the backend as right, wrong or none."""
    known = _Spans(spans, services)
    evidence: Counter[str] = Counter()
    for target, header in taken:
        result.calls += 1
        result.no_header += not header
        found = known.clients[services[-1], target]
        if not found:
            result.none += 1
            result.unseen += 1
            continue
        call = next((span for span in found if span.span_id in header), found[0])
        found.remove(call)
        verdict = _verdict(call, target, known, behaviour)
        if header and not known.fits(header, call, number_of(target)):
            verdict = WRONG
        setattr(result, verdict, getattr(result, verdict) + 1)
        evidence[f"{verdict} by {call.evidence or 'none'}"] += 1
        if verdict == WRONG and len(result.examples) < 5:
            parent = known.by_id.get(call.parent_span_id)
            result.examples.append(
                f"{target}: {call.evidence}, parent {parent.path if parent else 'unknown'}"
            )
    result.evidence = dict(sorted(evidence.items()))


def _verdict(call: Span, target: str, known: _Spans, behaviour: Behaviour) -> str:
    number = number_of(target)
    if number is None:
        return NONE
    after = behaviour is Behaviour.AFTER and calls_after_answer(number)
    if after or target.startswith(_POLL):
        return WRONG if call.parent_span_id else RIGHT
    return known.follow(call, number)
