"""The agent: attaches the programs, drains the kernel's records by the clock, exports them.

One thread does everything but the export, which has threads of its own and never blocks this one.
"""

from __future__ import annotations

import enum
import logging
import os
import signal
import time
from contextlib import ExitStack
from functools import partial

from throughline.agent import earlier, release, systemd
from throughline.agent.contradictions import Contradictions
from throughline.agent.housekeeping import Housekeeping
from throughline.agent.pace import Pace
from throughline.agent.parents import Parents
from throughline.agent.parts import Parts
from throughline.agent.report import Report
from throughline.bpf import libbpf, listeners, ringbuffer, traced, trust
from throughline.bpf.settings import Settings
from throughline.config.model import Config, ConfigError, load
from throughline.export.pipeline import Pipeline
from throughline.features import obstacles, providers
from throughline.features.attach import attach, tell
from throughline.features.programs import Programs
from throughline.host import facts, lock
from throughline.host.attributes import host_attributes
from throughline.probes import uprobes
from throughline.probes.attachments import Attachments
from throughline.probes.files import Files
from throughline.probes.processes import Processes
from throughline.records import durations
from throughline.records.drain import Records
from throughline.services.naming import Services
from throughline.services.rules import attach_roots
from throughline.steps import Steps, Work, finish
from throughline.telemetry.series import Series

log = logging.getLogger(__name__)

WORK_SECONDS, REST_SECONDS = 0.02, 0.005  # of housekeeping between two drains, and after it
_CONTRADICTED = "tl_contradicted"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Exit(enum.IntEnum):
    """The exit codes of `throughline run`. The unit does not start again after CANNOT_WORK."""

    STOPPED = 0
    CANNOT_WORK = 3


def run(config: Config) -> int:
    """Runs until SIGTERM or SIGINT. SIGHUP checks the configuration and executes the agent anew."""
    found = facts.gather()
    blocked = obstacles.of_host(config, found)
    if blocked is not None:
        return _cannot_work(blocked.reason, blocked.fix)
    assert found.cgroup2 is not None
    directory = config.agent.runtime_directory
    if not os.access(directory, os.W_OK | os.X_OK):
        fix = "create it, or set RuntimeDirectory= in the unit"
        return _cannot_work(f"{directory} is not a directory that this user may write", fix)
    with ExitStack() as stack:
        try:
            held = lock.acquire(config.agent.bpffs)
        except lock.LockedError as error:
            fix = "stop it, or set agent.bpffs and agent.runtime_directory to others"
            return _cannot_work(str(error.strerror), fix)
        stack.callback(os.close, held)
        agent = Agent(config, found, stack, held)
        if not agent.attach():
            agent.give_up()
            return Exit.CANNOT_WORK
        return agent.loop()


def _cannot_work(reason: str, fix: str) -> Exit:
    log.error("%s; fix: %s", reason, fix)
    return Exit.CANNOT_WORK


class Agent:
    """One run of the agent."""

    def __init__(self, config: Config, found: facts.Facts, stack: ExitStack, held: int) -> None:
        assert found.cgroup2 is not None
        self._stop = 0  # the signal that ends the loop
        # before anything is attached, so that a signal meanwhile leaves a clean host, too
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        # until the programs are attached: a signal makes the kernel's verifier give up (EAGAIN)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self._facts = found
        self._lock = held
        self._own_cgroup = facts.own_cgroup(found.cgroup2)
        host = host_attributes()
        roots = attach_roots(config.services, cgroup2=found.cgroup2)
        services = Services(
            config.services,
            cgroup2=found.cgroup2,
            host=host,
            resource_attributes=config.resource_attributes,
            roots=roots,
        )
        self._contradictions = Contradictions(config.agent.contradictions_path)
        programs = Programs(
            bpffs=config.agent.bpffs,
            cgroup2=found.cgroup2,
            roots=roots,
            settings=Settings.of(config, trace_unlisted=services.trace_by_default),
            recall=lambda loaded: self._contradictions.recall(loaded.map_fd(_CONTRADICTED)),
        )
        stack.callback(programs.close)
        # Closed after an exception, too: a process that waits to write to a probed file waits for
        # this one.
        self._files = stack.enter_context(ExitStack())
        pipeline = Pipeline(config.export)
        stack.callback(pipeline.close)  # however this run ends, what is queued goes to the disk
        before = earlier.read(config.agent.status_path, adopting=programs.adopting)
        records = Records(services, pipeline.submit, sampled=before.sampled)
        stack.callback(records.end)
        self._parts = Parts(
            config=config,
            cgroup2=found.cgroup2,
            host=host,
            steps=Steps(),
            services=services,
            programs=programs,
            pipeline=pipeline,
            records=records,
            started_unix=time.time(),
            counting_since_unix_ns=before.counting_since_unix_ns,
            roots=roots,
        )
        self._work = Work()  # housekeeping that has begun

    # -- start -------------------------------------------------------------------------------------

    def attach(self) -> bool:
        """Attaches every wanted group; False when the group without which none works is off."""
        parts = self._parts
        outcome = attach(
            parts.programs,
            parts.config,
            self._facts,
            before=lambda: self._notify(systemd.ONE_MINUTE_MORE),
        )
        parts.groups = outcome.groups
        if outcome.probing:
            self._probe(outcome.probing, outcome.kind)
        tell(parts.groups)
        return parts.groups["observe"].is_on

    def _probe(self, probing: dict[str, libbpf.Object], kind: uprobes.Kind | None) -> None:
        parts = self._parts
        parts.providers = providers.make(probing, parts.programs.left_out)
        made = [provider for group in parts.providers.values() for provider in group]
        for provider in made:
            self._files.callback(provider.close)
        programs = {p.name: p for loaded in probing.values() for p in loaded.programs()}
        parts.uprobes = kind
        parts.files = Files(made, Attachments(programs, kind))
        self._files.callback(parts.files.close)
        parts.processes = Processes(parts.files)

    def give_up(self) -> None:
        """Removes what this run has pinned; what it found stays as it was."""
        self._parts.programs.give_up()

    # -- the loop ----------------------------------------------------------------------------------

    def loop(self) -> Exit:
        """Drains until a signal comes. No error of one step ends it: see `Steps`."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        parts = self._parts
        steps, export = parts.steps, parts.config.export
        ring = ringbuffer.RingBuffer(parts.programs.map_fd("tl_spans"), parts.records.receive)
        cgroups = traced.TracedCgroups(parts.programs.map_fd("tl_cgroups"))
        series = self._series()
        table = parts.programs.map_fd("tl_trust")
        parents = Parents(partial(trust.read, table), parts.services)
        report = Report(parts, series, parents)
        housekeeping = Housekeeping(
            parts,
            cgroups=cgroups,
            series=series,
            parents=parents,
            report=report,
            keep=lambda: self._contradictions.keeping(parts.programs.map_fd(_CONTRADICTED)),
            own_cgroup=self._own_cgroup,
        )
        finish(steps.turns("tick", housekeeping.tick(time.monotonic())))
        self._notify(systemd.READY)
        log.info("attached to %s", ", ".join(f"/{root}" for root in parts.roots) or "no cgroup")
        parts.pipeline.start()
        pace = Pace(time.monotonic())
        next_metrics = time.monotonic() + export.metrics_interval
        while True:
            steps.run("drain", partial(parts.records.drain, ring))
            steps.run("listeners", partial(self._hurry, pace))
            now = time.monotonic()
            if self._stop == signal.SIGHUP:
                self._stop = 0
                self._reload(ring)
            elif self._stop:
                break
            if self._work.is_done:
                if pace.is_due(now):
                    self._work.begin(steps.turns("tick", housekeeping.tick(now)))
                elif export.metrics_enabled and now >= next_metrics:
                    next_metrics = now + export.metrics_interval
                    self._work.begin(steps.turns("metrics", report.send_metrics()))
                elif parts.records.waiting and parts.services.may_refresh():
                    self._work.begin(steps.turns("name_services", housekeeping.name_records()))
            self._work.go_on(seconds=WORK_SECONDS)
            rest = parts.config.agent.drain_interval
            time.sleep(rest if self._work.is_done else min(rest, REST_SECONDS))
        self._end(ring, housekeeping, report)
        series.remove()
        report.remove_status()
        log.info("detached")
        return Exit.STOPPED

    def _hurry(self, pace: Pace) -> None:
        """Looks soon at processes that have begun to serve."""
        parts = self._parts
        pids = listeners.take(parts.programs.map_fd("tl_listeners"))
        if pids:
            pace.hurry(time.monotonic())
            if parts.processes is not None:
                parts.processes.look_again(pids)

    def _series(self) -> Series:
        parts = self._parts
        return Series(
            durations.duration_map(parts.programs.map_fd("tl_durations")),
            services=parts.services,
            path=parts.config.agent.runtime_directory / "series.json",
            start_unix_ns=parts.counting_since_unix_ns,
            adopting=parts.programs.adopting,
        )

    def _end(self, ring: ringbuffer.RingBuffer, housekeeping: Housekeeping, report: Report) -> None:
        """Detaches everything, and exports what was seen until then."""
        parts = self._parts
        steps, metrics = parts.steps, parts.config.export.metrics_enabled
        self._notify(systemd.STOPPING)
        self._work.finish()
        steps.run("detach", self._files.close)
        table = parts.programs.map_fd(_CONTRADICTED)
        steps.run(
            "keep_contradictions", lambda: finish(self._contradictions.keeping(table, now=True))
        )
        if metrics:
            steps.run("metrics", lambda: finish(report.read_series()))
        parts.programs.detach()
        steps.run("drain", partial(parts.records.drain, ring))
        steps.run("name_services", lambda: finish(housekeeping.name_records()))
        ring.close()
        if metrics:
            steps.run("metrics", report.submit_metrics)
        parts.pipeline.close()

    def _reload(self, ring: ringbuffer.RingBuffer) -> None:
        """Executes the current release in place; the pinned programs go on meanwhile."""
        parts = self._parts
        path = parts.config.path
        try:
            load(path)
        except ConfigError as error:
            for problem in error.problems:
                log.error("not reloaded: %s", problem)
            return
        program = release.program()
        if not os.access(program, os.X_OK):
            log.error("not reloaded: %s cannot be executed by this user", program)
            return
        self._notify(systemd.RELOADING)
        # execve(2) keeps the mask and resets the handlers: a signal waits for the new ones
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self._work.abandon()
        parts.records.end()
        self._files.close()  # execve(2) may let go of a lease before the probes
        parts.records.drain(ring)
        parts.records.end()
        ring.close()
        parts.pipeline.close()
        release.execute(program, path, lock.hand_over(self._lock))

    def _notify(self, message: str) -> None:
        self._parts.steps.run("notify", lambda: systemd.notify(message))

    def _on_signal(self, number: int, _frame: object) -> None:
        # a reload that comes after an end does not undo it
        if self._stop in (0, signal.SIGHUP):
            self._stop = number
