"""Takes finished spans to the Collector. It never delays or ends the agent's loop.

    submit ──► queue ──► sender thread ──► OTLP
                 │            │ ▲
                 ▼ away, full ▼ │ back: oldest first, in turn with fresh batches
               spooler thread ──► spool (disk)

`submit` only appends to a bounded queue. The sender makes one attempt at a time and backs off when
the receiver is away; the spooler moves batches to disk while it is, or while an attempt hangs and
the queue fills. The OTLP stack is imported by the sender thread, since that takes longer than
everything else the agent does before it propagates its first request.
"""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from throughline.config.model import Export
from throughline.export import console
from throughline.export.outcome import ExportStatus, Outcome, Sender, Verdict, attempt
from throughline.export.secrets import Secrets
from throughline.export.spool import Batch, Item, Spool
from throughline.export.suspects import Suspects
from throughline.telemetry.totals import Totals

if TYPE_CHECKING:
    from throughline.export.encoding import EncodedSpan
    from throughline.export.templates import Templates

BATCH_SPANS = 512
LINGER_SECONDS = 1.0  # how long a span waits for others to share a batch with
QUEUE_SPANS = 16 * BATCH_SPANS
HIGH_WATER_SPANS = QUEUE_SPANS // 2
BACKOFF_SECONDS = (1.0, 30.0)  # first, longest
RETRY_AFTER_MAX_SECONDS = 300.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Work:
    """The sender's next task; `spooled` names the spool's file with `batch`, "" without a file."""

    batch: Batch
    spooled: str
    metrics: Totals | None


class Pipeline:
    """Owns the queue, the spool and the threads. Start with `start`, end with `close`."""

    def __init__(self, export: Export, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._export = export
        self._clock = clock
        self._spool = Spool(export.spool_directory, max_bytes=export.spool_max_bytes)
        self._disk = threading.Lock()  # guards the spool; never taken inside `_changed`
        self._changed = threading.Condition()  # guards everything below; held for microseconds
        self._queue: deque[Item] = deque()
        self._oldest_at = 0.0  # when the first span of the queue came
        self._in_flight: Batch = ()
        self._metrics: Totals | None = None
        self._state = "idle" if export.otlp else "off"
        self._failures = 0  # in a row
        self._retry_at = 0.0
        self._spool_retry_at = 0.0
        self._spool_turn = True
        self._suspects = Suspects()
        self._stop_at: float | None = None
        self._exported = 0
        self._failed_batches = 0
        self._dropped: Counter[str] = Counter()
        self._last_error = ""
        self._secrets = Secrets((export.traces, export.metrics))
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        if not self._export.otlp:
            return
        for name, target in (("export", self._send_loop), ("spool", self._spool_loop)):
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def submit(self, batch: Batch) -> None:
        """Takes finished spans. Never waits for the receiver or the spool, never raises."""
        if not batch:
            return
        if self._export.console:
            try:
                console.write(batch, sys.stdout)
            except (OSError, ValueError):
                with self._changed:
                    self._dropped["console"] += len(batch)
        if not self._export.otlp:
            return
        with self._changed:
            before = len(self._queue)
            if not before:
                self._oldest_at = self._clock()
            room = QUEUE_SPANS - before
            self._queue.extend(batch[:room])
            if len(batch) > room:
                self._dropped["queue_full"] += len(batch) - room
            if not before or before < BATCH_SPANS <= len(self._queue):
                self._changed.notify_all()

    def submit_metrics(self, totals: Totals) -> None:
        """Sends totals with the next turn. They replace totals that wait."""
        with self._changed:
            self._metrics = totals
            self._changed.notify_all()

    def status(self) -> ExportStatus:
        with self._changed:
            dropped = self._dropped + Counter(
                spool_overflow=self._spool.overflowed,
                spool_torn=self._spool.torn,
                unconvertible=self._spool.unwritable,
            )
            return ExportStatus(
                state=self._state,
                exported_spans=self._exported,
                failed_batches=self._failed_batches,
                queued_spans=len(self._queue) + len(self._in_flight),
                spool_bytes=self._spool.bytes,
                spool_batches=len(self._spool),
                dropped=dict(dropped),
                last_error=self._last_error,
            )

    def close(self, *, timeout: float = 5.0) -> None:
        """Sends the queue while the receiver takes it, and spools the rest; within `timeout`."""
        with self._changed:
            self._stop_at = stop_at = self._clock() + timeout
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, stop_at - self._clock()))
        with self._changed:
            # An attempt that still hangs may arrive, too: twice is better than never.
            left = [*self._in_flight, *self._queue]
            self._in_flight = ()
            self._queue.clear()
        # Agent also calls this where nothing was started, and once more after an error.
        for start in range(0, len(left), BATCH_SPANS):
            self._to_spool(left[start : start + BATCH_SPANS])

    # -- the sender thread ---------------------------------------------------------------------

    def _send_loop(self) -> None:
        while True:
            try:
                return self._send_until_stopped()
            except Exception as error:  # a defect, or a certificate that is not there
                log.error(
                    "the exporter failed; it is set up again: %s",
                    self._secrets.hide(traceback.format_exc()),
                )
                with self._changed:
                    batch, self._in_flight = self._in_flight, ()
                    if self._retry_at <= self._clock():  # else the batch has been settled
                        self._down(_failed(error))
                if batch:
                    self._to_spool(batch)
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._stop_at is not None, self._retry_at - self._clock()
                    )
                    if self._stop_at is not None:
                        return None

    def _send_until_stopped(self) -> None:
        from throughline.export import otlp
        from throughline.export.templates import Templates

        templates = Templates()
        with ExitStack() as stack:
            spans = otlp.span_sender(self._export.traces)
            stack.callback(spans.close)
            metrics: Sender | None = None
            while True:
                work = self._next()
                if work is None:
                    return
                if work.metrics is not None:
                    if metrics is None:
                        metrics = otlp.metric_sender(self._export.metrics)
                        stack.callback(metrics.close)
                    self._send_metrics(work.metrics, metrics)
                if work.batch:
                    self._send(work, spans, templates)

    def _send_metrics(self, totals: Totals, sender: Sender) -> None:
        """One attempt. Totals that do not arrive are not kept: the next ones contain them."""
        from throughline.telemetry import metrics

        try:
            outcome = sender.send(metrics.encode(totals))
        except Exception as error:
            outcome = _failed(error)
        endpoint = self._export.metrics.endpoint
        with self._changed:
            if outcome.verdict is not Verdict.ACCEPTED:
                self._say(f"metrics: {endpoint}: {outcome.detail}")
            elif outcome.rejected:
                self._say(f"metrics: {outcome.rejected} points were rejected: {outcome.detail}")

    def _send(self, work: _Work, sender: Sender, templates: Templates) -> None:
        """One attempt with a batch, without records of which no message can be made."""
        from throughline.export import encoding

        encoded: list[EncodedSpan] = []
        for span, service in work.batch:
            try:
                encoded.append(encoding.encode(span, service, templates))
            except Exception as error:  # the other spans of the batch are sent
                self._say_bad(error)
        try:
            outcome = attempt(lambda part: sender.send(encoding.request(part)), encoded)
        except Exception as error:
            self._settle(work, replace(_failed(error), suspicious=True), len(encoded))
            raise
        self._settle(work, outcome, len(encoded))

    def _say_bad(self, error: Exception) -> None:
        detail = f"a span was dropped, no message can be made of it: {_failed(error).detail}"
        with self._changed:
            self._say(detail)

    def _next(self) -> _Work | None:
        """Waits for work; None ends the thread."""
        while True:
            with self._changed:
                now = self._clock()
                stopping = self._stop_at is not None
                if stopping and (self._state == "down" or now >= (self._stop_at or 0.0)):
                    return None
                metrics: Totals | None = None
                from_spool = False
                if self._state != "down" or now >= self._retry_at:
                    metrics, self._metrics = self._metrics, None
                    spooled = len(self._spool) > 0 and not stopping
                    fresh = bool(self._queue) and (stopping or self._is_due(now))
                    if fresh and not (spooled and self._spool_turn):
                        self._spool_turn = True
                        self._in_flight = self._take()
                        return _Work(self._in_flight, "", metrics)
                    self._spool_turn = False
                    from_spool = spooled
                if not from_spool:
                    if metrics is not None:
                        return _Work((), "", metrics)
                    if stopping:
                        return None
                    self._changed.wait(self._wait_seconds(now))
                    continue
            with self._disk:
                name, batch = self._spool.oldest()
            if batch or metrics is not None:
                return _Work(batch, name, metrics)

    def _is_due(self, now: float) -> bool:
        """Whether a batch of the queue is full, or its first span has waited LINGER_SECONDS."""
        return len(self._queue) >= BATCH_SPANS or now - self._oldest_at >= LINGER_SECONDS

    def _take(self) -> Batch:
        batch = [self._queue.popleft() for _ in range(min(BATCH_SPANS, len(self._queue)))]
        self._oldest_at = self._clock()
        return batch

    def _wait_seconds(self, now: float) -> float | None:
        if self._state == "down" and now < self._retry_at:
            return self._retry_at - now
        return max(0.0, self._oldest_at + LINGER_SECONDS - now) if self._queue else None

    def _settle(self, work: _Work, outcome: Outcome, sent: int) -> None:
        """Counts the outcome of a batch; `sent` is how many of its spans have a message."""
        with self._changed:
            outcome = self._suspects.judge(work.spooled, outcome)
            closed = not work.spooled and not self._in_flight
            self._in_flight = ()
            if outcome.verdict is Verdict.RETRY:
                self._failed_batches += 1
                self._down(outcome)
            elif outcome.verdict is Verdict.REFUSED:
                self._failed_batches += 1
                self._dropped["refused"] += sent
                self._say(f"{self._export.traces.endpoint} refused a batch: {outcome.detail}")
            else:
                self._exported += sent - outcome.rejected
                if outcome.rejected:
                    self._dropped["rejected"] += outcome.rejected
                    self._say(f"{outcome.rejected} spans were rejected: {outcome.detail}")
                self._up()
            if outcome.verdict is not Verdict.RETRY and sent < len(work.batch):
                self._dropped["unconvertible"] += len(work.batch) - sent
            gives_way = self._suspects.gives_way(work.spooled)
        if not work.spooled:
            if outcome.verdict is Verdict.RETRY and not closed:  # after close() it is in the spool
                self._to_spool(work.batch)
            return
        with self._disk:
            if outcome.verdict is not Verdict.RETRY:
                self._spool.remove(work.spooled)
            elif gives_way:
                self._spool.postpone(work.spooled)

    def _up(self) -> None:
        if self._state == "down":
            log.info("%s takes spans again", self._export.traces.endpoint)
        self._state = "up"
        self._failures = 0

    def _down(self, outcome: Outcome) -> None:
        detail = self._secrets.hide(outcome.detail)
        if self._state != "down":
            log.warning(
                "%s takes no spans (%s); batches go to %s",
                self._export.traces.endpoint,
                detail,
                self._spool.directory,
            )
        self._state = "down"
        self._last_error = detail
        first, longest = BACKOFF_SECONDS
        backoff = min(longest, first * 2 ** min(self._failures, 10))
        backoff *= random.uniform(0.75, 1.25)  # noqa: S311
        self._failures += 1
        wait = max(backoff, min(outcome.retry_after, RETRY_AFTER_MAX_SECONDS))
        self._retry_at = self._clock() + wait

    def _say(self, message: str) -> None:
        """Logs a message, unless it is the same as the last one."""
        message = self._secrets.hide(message)
        if message != self._last_error:
            log.warning("%s", message)
        self._last_error = message

    # -- the spooler thread --------------------------------------------------------------------

    def _spool_loop(self) -> None:
        while True:
            with self._changed:
                if self._stop_at is not None:
                    return
                now = self._clock()
                if not self._must_spool(now):
                    self._changed.wait(LINGER_SECONDS / 2 if self._queue else None)
                    continue
                batch = self._take()
            self._to_spool(batch)

    def _must_spool(self, now: float) -> bool:
        if not self._queue or now < self._spool_retry_at:
            return False
        return len(self._queue) >= HIGH_WATER_SPANS or (self._state == "down" and self._is_due(now))

    def _to_spool(self, batch: Batch) -> None:
        """Writes a batch. Where the disk refuses, it goes back into the queue if there is room."""
        try:
            with self._disk:
                self._spool.write(batch)
        except OSError as error:
            with self._changed:
                self._say(f"spool {self._spool.directory}: {error.strerror}")
                self._spool_retry_at = self._clock() + BACKOFF_SECONDS[0]
                if self._stop_at is None and len(self._queue) + len(batch) <= QUEUE_SPANS:
                    self._queue.extendleft(reversed(batch))
                else:
                    self._dropped["spool_error"] += len(batch)
        else:
            with self._changed:
                self._changed.notify_all()  # the sender may have had nothing to do


def _failed(error: BaseException) -> Outcome:
    return Outcome(Verdict.RETRY, f"{type(error).__name__}: {error}")
