"""Takes finished spans from the ring buffer, finds their services, and exports them in batches."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from throughline.bpf import ringbuffer
from throughline.host import clock
from throughline.records.spanrecord import RawSpan
from throughline.services.naming import Service, Services
from throughline.steps import Turns

log = logging.getLogger(__name__)

_BATCH = 512
_MAX_WAITING = 8192  # spans of cgroups that no walk has found yet
_MAX_NAMES = 4096  # names of services that are counted: units come and go

_Named = list[tuple[RawSpan, Service]]


class Records:
    """Finished spans between the ring buffer and the export.

    A span of a cgroup that is not known waits for the next walk over the cgroups. `sampled` has the
    counts of an earlier run: spans by service and kind.
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
        """Returns whether a span waits until a walk finds its cgroup."""
        return bool(self._waiting)

    def drain(self, ring: ringbuffer.RingBuffer) -> None:
        """Takes all spans that the ring buffer holds, and gives them to the export."""
        self._offset = clock.unix_offset_ns()
        ring.consume()
        self.flush()

    def receive(self, data: bytes) -> None:
        """Takes the bytes of one span. Never raises: libbpf calls it."""
        span = RawSpan(data, self._offset)
        try:
            cgroup_id, kind = span.owner()
        except Exception:
            self.undecodable += 1
            if self.undecodable == 1:
                log.exception("a span of %d bytes cannot be decoded", len(data))
            return
        service = self._services.find(cgroup_id)
        if service is None and len(self._waiting) < _MAX_WAITING:
            self._waiting.append(span)
        else:
            self._add(span, kind, service or self._services.lookup(cgroup_id))

    def take_waiting(self) -> list[RawSpan]:
        """The spans that wait now. The caller gives them to `name` after the next walk."""
        taken, self._waiting = self._waiting, []
        return taken

    def name(self, spans: Collection[RawSpan]) -> None:
        """Exports spans that have waited, with the service of their cgroup or `unknown`."""
        for span in spans:
            cgroup_id, kind = span.owner()
            self._add(span, kind, self._services.lookup(cgroup_id))
        self.flush()

    def end(self, walk: Turns[None] | None = None) -> None:
        """Exports all spans without another walk, and ends `walk`, for which spans may wait."""
        if walk is not None:
            walk.close()
        self.name(self.take_waiting())

    def flush(self) -> None:
        """Gives the spans of an incomplete batch to the export."""
        if self._pending:
            batch, self._pending = self._pending, []
            self._submit(batch)

    def forget_names(self, used: Collection[str]) -> None:
        """Forgets the counts of services that are not in `used` when there are too many counts."""
        if len(self.sampled) > _MAX_NAMES:
            kept = {key: count for key, count in self.sampled.items() if key[0] in used}
            self.sampled = Counter(kept)

    def _add(self, span: RawSpan, kind: str, service: Service) -> None:
        self.sampled[service.name, kind] += 1
        self._pending.append((span, service))
        if len(self._pending) >= _BATCH:
            self.flush()
