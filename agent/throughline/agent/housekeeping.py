"""Housekeeping: what the agent does each second between the drains of the ring buffer.

All of it is work in turns, since what others have made may be much: cgroups, processes, files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from throughline.agent.parents import Parents
from throughline.agent.parts import Parts
from throughline.agent.report import Report
from throughline.bpf.traced import TracedCgroups
from throughline.services.rules import find_roots
from throughline.steps import Turns
from throughline.telemetry.series import Series

log = logging.getLogger(__name__)

SWEEP_SECONDS = 60.0  # between looks for requests whose end was not seen
ROOTS_SECONDS = 5.0  # between looks for new top-level cgroups where that is a walk over all cgroups


class Housekeeping:
    """The steps of each second. `own_cgroup` is never traced."""

    def __init__(
        self,
        parts: Parts,
        *,
        cgroups: TracedCgroups,
        series: Series,
        parents: Parents,
        report: Report,
        keep: Callable[[], Turns[None]],  # what has been learned
        own_cgroup: int | None,
    ) -> None:
        self._parts = parts
        self._cgroups = cgroups
        self._series = series
        self._parents = parents
        self._report = report
        self._keep = keep
        self._own_cgroup = own_cgroup
        self._next_roots = self._next_sweep = 0.0
        self._learned = 0  # processes that call FIONREAD, as of the last release of sockets

    def tick(self, now: float) -> Turns[None]:
        """All steps of a second."""
        steps = self._parts.steps
        yield from steps.turns("follow_roots", self._follow_roots(now))
        yield from steps.turns("name_services", self.name_records())
        steps.run("sync_cgroups", self._sync_cgroups)
        yield from self._follow(now)
        yield from steps.turns("read_series", self._series.reading())
        yield from steps.turns("read_parents", self._parents.reading())
        yield from steps.turns("keep_contradictions", self._keep())
        steps.run("status", self._report.write_status)
        yield
        steps.run("release_sockets", self._release_sockets)

    def name_records(self) -> Turns[None]:
        """Walks over the cgroups, and names the records that have waited for that."""
        records = self._parts.records
        waiting = records.take_waiting()
        try:
            yield from self._parts.services.refreshing()
        finally:
            records.name(waiting)

    def _sync_cgroups(self) -> None:
        """Tells the kernel which cgroups are traced."""
        wanted = self._parts.services.listed()
        if self._own_cgroup is not None:
            wanted[self._own_cgroup] = 0
        full = self._cgroups.tell(wanted)
        if full:
            self._parts.counts["full_cgroups"] += full

    def _follow(self, now: float) -> Turns[None]:
        """Follows files and network interfaces, and ends requests that nobody else ends."""
        parts, steps = self._parts, self._parts.steps
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            steps.run("sweep", self._sweep)
        if parts.files is not None and parts.processes is not None:
            paths = parts.services.traced_paths()
            yield from steps.turns("follow_files", parts.processes.following(paths))
            for group, providers in parts.providers.items():
                for provider in providers:
                    work = provider.tick(parts.files.probed(provider.name))
                    yield from steps.turns(f"follow_{group}", work)
        if parts.programs.interfaces is not None:
            steps.run("follow_interfaces", parts.programs.interfaces.follow)

    def _sweep(self) -> None:
        swept = self._parts.programs.sweep()
        if swept:
            self._parts.counts["requests_swept"] += swept

    def _release_sockets(self) -> None:
        """Releases the sockets of a process that was seen to call FIONREAD, where it is broken."""
        learned = self._parts.counters.get("fionread_learned", 0)
        if learned != self._learned:
            released = self._parts.programs.release_sockets()
            self._learned = learned
            if released:
                self._parts.counts["evicted_by_agent"] += released

    def _follow_roots(self, now: float) -> Turns[None]:
        """Attaches to cgroups that come, or come again, while the agent runs."""
        parts = self._parts
        rules = parts.config.services
        roots = parts.roots
        if now >= self._next_roots:
            found = yield from find_roots(rules, cgroup2=parts.cgroup2)
            roots = sorted({*roots, *found})
            walks = any(rule.by == "systemd_unit" for rule in rules)
            self._next_roots = now + (ROOTS_SECONDS if walks else 0.0)
        done = parts.programs.reattach(roots)
        for error in done.failures:  # tried again each second, logged once
            if not parts.counts["attach_failed"]:
                log.warning("not attached: %s", error.strerror)
            parts.counts["attach_failed"] += 1
        if done.fresh:
            log.info("attached to %s", ", ".join(f"/{root}" for root in done.fresh))
        if roots != parts.roots:
            parts.roots = roots
            parts.services.follow(roots)
