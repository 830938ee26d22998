"""Finished spans from the ring buffer to the export: named and handed over in batches."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from throughline.bpf import ringbuffer
from throughline.host import clock
from throughline.records.events import RawSpan
from throughline.services.naming import Service, Services
from throughline.steps import Turns

log = logging.getLogger(__name__)

_BATCH = 512
_MAX_WAITING = 8192  # records of cgroups that no walk has met yet
_MAX_NAMES = 4096  # of services that are counted: units come and go

_Named = list[tuple[RawSpan, Service]]


class Records:
    """Takes records from `ring`. A record of an unknown cgroup waits for the next walk over them.

    `sampled` is what an earlier run has counted: service and kind -> spans.
    """

    def __init__(
        self,
        services: Services,
        submit: Callable[[_Named], None],
        *,
        sampled: Mapping[tuple[str, str], int],
    ) -> None:
        self._services = services
        self._submit = submit
        self._pending: _Named = []
        self._waiting: list[RawSpan] = []
        self._offset = 0
        self.sampled: Counter[tuple[str, str]] = Counter(sampled)
        self.undecodable = 0

    @property
    def waiting(self) -> bool:
        """Does a record wait for its cgroup to be met?"""
        return bool(self._waiting)

    def drain(self, ring: ringbuffer.RingBuffer) -> None:
        """Takes all that is there."""
        self._offset = clock.unix_offset_ns()
        ring.consume()
        self.flush()

    def receive(self, data: bytes) -> None:
        """Takes one record. Never raises: it is called by C."""
        span = RawSpan(data, self._offset)
        try:
            cgroup_id, kind = span.owner()
        except Exception:
            self.undecodable += 1
            if self.undecodable == 1:
                log.exception("a record of %d bytes cannot be decoded", len(data))
            return
        service = self._services.find(cgroup_id)
        if service is None and len(self._waiting) < _MAX_WAITING:
            self._waiting.append(span)
        else:
            self._add(span, kind, service or self._services.lookup(cgroup_id))

    def take_waiting(self) -> list[RawSpan]:
        """What waits now, for `name` after a walk that begins now."""
        taken, self._waiting = self._waiting, []
        return taken

    def name(self, spans: Collection[RawSpan]) -> None:
        """Hands over what has waited, under the name of its cgroup or as unknown."""
        for span in spans:
            cgroup_id, kind = span.owner()
            self._add(span, kind, self._services.lookup(cgroup_id))
        self.flush()

    def end(self, walk: Turns[None] | None = None) -> None:
        """Hands over all, without another walk. `walk` is one that records may wait for."""
        if walk is not None:
            walk.close()
        self.name(self.take_waiting())

    def flush(self) -> None:
        if self._pending:
            batch, self._pending = self._pending, []
            self._submit(batch)

    def forget_names(self, used: Collection[str]) -> None:
        """Forgets counts of services that are not in `used`, when there are many."""
        if len(self.sampled) > _MAX_NAMES:
            kept = {key: count for key, count in self.sampled.items() if key[0] in used}
            self.sampled = Counter(kept)

    def _add(self, span: RawSpan, kind: str, service: Service) -> None:
        self.sampled[service.name, kind] += 1
        self._pending.append((span, service))
        if len(self._pending) >= _BATCH:
            self.flush()
