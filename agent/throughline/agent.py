"""The agent: attaches the programs, drains the kernel's records by the clock, exports them.

The only module that knows all the others. One thread does everything but the export, which has
threads of its own and never holds this one up.
"""

from __future__ import annotations

import logging
import os
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

from throughline import __version__, events, groups, readings, release, report, status
from throughline import config as configuration
from throughline.config import Config
from throughline.export.pipeline import Pipeline
from throughline.goprograms import GoPrograms
from throughline.host import host_attributes
from throughline.kernel import facts, libbpf, lock, openssl, uprobes
from throughline.kernel import programs as kernel
from throughline.libraries import Libraries
from throughline.services import Service, Services, agent_service, attach_roots
from throughline.status import StatusWriter, notify
from throughline.steps import Steps

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
SWEEP_SECONDS = 60.0  # between looks for requests whose end was not seen
ROOTS_SECONDS = 5.0  # between looks for new top-level cgroups where that means a walk over all
# The unit's TimeoutStartSec is for one group, not for all: sd_notify(3).
GROUP_TIMEOUT = "EXTEND_TIMEOUT_USEC=60000000"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_BATCH = 512


def run(config: Config) -> int:
    """Runs until SIGTERM or SIGINT (0). SIGHUP: check the configuration and execute anew.

    Returns 3 when a wanted group cannot work.
    """
    found = facts.gather()
    blocked = groups.prerequisites(config, found)
    if blocked is not None:
        log.error("%s; fix: %s", blocked.reason, blocked.fix)
        return 3
    assert found.cgroup2 is not None
    directory = config.agent.runtime_directory
    if not os.access(directory, os.W_OK | os.X_OK):
        fix = "create it, or set RuntimeDirectory= in the unit"
        log.error("%s is not a directory that this user may write; fix: %s", directory, fix)
        return 3
    with ExitStack() as stack:
        try:
            held = lock.acquire(config.agent.bpffs)
        except lock.LockedError as error:
            fix = "stop it, or set agent.bpffs and agent.runtime_directory to others"
            log.error("%s; fix: %s", error.strerror, fix)
            return 3
        stack.callback(os.close, held)
        agent = Agent(config, found, stack, held)
        if not agent.attach():
            agent.give_up()
            return 3
        return agent.loop()


class Agent:
    """One run of the agent."""

    def __init__(self, config: Config, found: facts.Facts, stack: ExitStack, held: int) -> None:
        assert found.cgroup2 is not None
        self._stop = 0  # the signal that ends the loop
        # before anything is attached: whoever stops us while we start gets a clean host, too
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        # until the programs are attached: a signal makes the kernel's verifier give up (EAGAIN)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self._config = config
        self._facts = found
        self._cgroup2 = found.cgroup2
        self._lock = held
        self._steps = Steps()
        self._started = time.time()
        self._host = host_attributes()
        self._own_cgroup = facts.own_cgroup(found.cgroup2)
        self._roots = attach_roots(config.services, cgroup2=found.cgroup2)
        self._services = self._name_services()
        self._programs = kernel.Programs(
            bpffs=config.agent.bpffs,
            cgroup2=found.cgroup2,
            roots=self._roots,
            settings=kernel.Settings.of(config, trace_unlisted=self._services.trace_by_default),
        )
        stack.callback(self._programs.close)
        # After an exception, too: who waits to write to a probed file is answered by nobody else.
        self._files = stack.enter_context(ExitStack())
        self._pipeline = Pipeline(config.export)
        self._status = StatusWriter(config.agent.status_path)
        self._groups: dict[str, groups.Group] = {}
        self._libraries: Libraries | None = None  # of the groups `tls` and `go`
        self._go: GoPrograms | None = None
        self._pending: list[tuple[events.SpanRecord, Service]] = []
        self._next_roots = self._next_sweep = 0.0
        self._failures: Counter[str] = Counter()
        # what an earlier run counted goes on with the kernel's own totals
        earlier = status.last(config.agent.status_path) if self._programs.adopting else {}
        self._sampled: Counter[tuple[str, str]] = Counter(
            {
                (name, kind): service[kind]["sampled"]
                for name, service in earlier.get("services", {}).items()
                for kind in ("server", "client")
                if kind in service
            }
        )
        self._learned = 0  # processes that call FIONREAD
        self._undecodable = 0
        self._offset = 0
        self._start_unix_ns = int(earlier.get("counting_since_unix_ns", time.time_ns()))
        self._last: tuple[list[events.DurationRow], dict[str, int]] = ([], {})

    def _name_services(self) -> Services:
        return Services(
            self._config.services,
            cgroup2=self._cgroup2,
            host=self._host,
            resource_attributes=self._config.resource_attributes,
            roots=self._roots,
        )

    # -- start and end -----------------------------------------------------------------------------

    def attach(self) -> bool:
        """Attaches every wanted group; False when one that is required cannot work."""
        outcome = groups.attach(
            self._programs, self._config, self._facts, before=lambda: self._notify(GROUP_TIMEOUT)
        )
        self._groups = outcome.groups
        if outcome.kind is not None and outcome.probing:
            self._probe(outcome.probing, outcome.kind)
        for name, group in self._groups.items():
            if group.wanted and group.state == "off":
                log.error("group %s is off: %s; fix: %s", name, group.reason, group.fix)
            for program in group.without:
                log.warning(
                    "group %s is without %s: no %s (%s)",
                    *(name, program.program, program.gives, program.reason),
                )
        return self._groups["observe"].state == "on"

    def _probe(self, probing: dict[str, libbpf.Object], kind: uprobes.Kind) -> None:
        finders: list[Callable[[int], tuple[uprobes.Site, ...]]] = []
        # first: a program that is still being analysed is asked for each second
        if "go" in probing:
            left_out = [*self._programs.left_out("go"), *self._programs.left_out("go_write")]
            self._go = GoPrograms(
                probing["go"],
                write="go_write" in probing,
                without=[program.program for program in left_out],
            )
            self._files.callback(self._go.close)
            finders.append(self._go.find)
        if "tls" in probing:
            finders.append(openssl.sites_of)
        programs = {p.name: p for loaded in probing.values() for p in loaded.programs()}
        self._libraries = Libraries(
            programs, lambda fd: tuple(site for find in finders for site in find(fd)), kind
        )
        self._files.callback(self._libraries.close)

    def give_up(self) -> None:
        """Removes what this run has pinned; what it found stays as it was."""
        self._programs.give_up()

    def loop(self) -> int:
        """Drains until a signal comes. No error of one step ends it: see `Steps`."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        ring = libbpf.RingBuffer(self._programs.map_fd("tl_spans"), self._on_record)
        self._cgroups = readings.TracedCgroups(self._programs.map_fd("tl_cgroups"))
        steps = self._steps
        steps.run("sync_cgroups", self._sync_cgroups)
        self._follow(time.monotonic())
        self._write_status()
        self._notify("READY=1")
        log.info("attached to %s", ", ".join(f"/{root}" for root in self._roots) or "no cgroup")
        self._pipeline.start()
        interval = self._config.agent.drain_interval
        next_tick = time.monotonic() + TICK_SECONDS
        next_metrics = time.monotonic() + self._config.export.metrics_interval
        while True:
            steps.run("drain", partial(self._drain, ring))
            now = time.monotonic()
            if self._stop == signal.SIGHUP:
                self._stop = 0
                self._reload(ring)
            elif self._stop:
                break
            if now >= next_tick:
                next_tick = now + TICK_SECONDS
                steps.run("follow_roots", partial(self._follow_roots, now))
                steps.run("name_services", self._services.refresh)
                steps.run("sync_cgroups", self._sync_cgroups)
                self._follow(now)
                self._write_status()
                steps.run("release_sockets", self._release_sockets)
            if self._config.export.metrics_enabled and now >= next_metrics:
                next_metrics = now + self._config.export.metrics_interval
                steps.run("metrics", self._send_metrics)
            time.sleep(interval)
        self._notify("STOPPING=1")
        steps.run("detach", self._files.close)
        self._programs.detach()
        steps.run("drain", partial(self._drain, ring))
        ring.close()
        if self._config.export.metrics_enabled:
            steps.run("metrics", lambda: self._send_metrics(from_cache=True))
        self._pipeline.close()
        self._status.remove()
        log.info("detached")
        return 0

    def _notify(self, message: str) -> None:
        self._steps.run("notify", lambda: notify(message))

    def _on_signal(self, number: int, _frame: object) -> None:
        # an end is not undone by a reload that comes behind it
        if self._stop in (0, signal.SIGHUP):
            self._stop = number

    def _reload(self, ring: libbpf.RingBuffer) -> None:
        """Executes the current release in place; the pinned programs go on meanwhile."""
        try:
            configuration.load(self._config.path)
        except configuration.ConfigError as error:
            for problem in error.problems:
                log.error("not reloaded: %s", problem)
            return
        program = release.program()
        if not os.access(program, os.X_OK):
            log.error("not reloaded: %s cannot be executed by this user", program)
            return
        self._notify("RELOADING=1")
        # execve(2) keeps the mask and resets the handlers: a signal waits for the new ones
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self._files.close()  # execve(2) may let go of a lease before the probes
        self._drain(ring)
        ring.close()
        self._pipeline.close()
        release.execute(program, self._config.path, lock.hand_over(self._lock))

    # -- records -----------------------------------------------------------------------------------

    def _on_record(self, data: bytes) -> None:
        try:
            record = events.decode_span(data, unix_offset_ns=self._offset)
        except (struct.error, KeyError):
            self._undecodable += 1
            return
        service = self._services.lookup(record.cgroup_id)
        self._sampled[service.name, record.kind] += 1
        self._pending.append((record, service))
        if len(self._pending) >= _BATCH:
            self._flush()

    def _drain(self, ring: libbpf.RingBuffer) -> None:
        self._offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        ring.consume()
        self._flush()

    def _flush(self) -> None:
        if self._pending:
            batch, self._pending = self._pending, []
            self._pipeline.submit(batch)

    # -- housekeeping ------------------------------------------------------------------------------

    def _sync_cgroups(self) -> None:
        """Tells the kernel which cgroups are traced."""
        wanted = self._services.traced()
        if self._own_cgroup is not None:
            wanted[self._own_cgroup] = False
        full = self._cgroups.tell(wanted)
        if full:
            self._failures["full_cgroups"] += full

    def _follow(self, now: float) -> None:
        """Files and network interfaces that have come or gone; requests that nobody ends."""
        steps = self._steps
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            steps.run("sweep", self._sweep)
        if self._libraries is not None:
            files = self._libraries
            steps.run("follow_files", lambda: files.follow(self._services.traced_paths()))
            if self._go is not None:
                go = self._go
                steps.run("follow_go", lambda: go.answer(files.probed))
        if self._programs.interfaces is not None:
            steps.run("follow_interfaces", self._programs.interfaces.follow)

    def _sweep(self) -> None:
        swept = self._programs.sweep()
        if swept:
            self._failures["requests_swept"] += swept

    def _release_sockets(self) -> None:
        """A process was seen to call FIONREAD, where that is broken: its sockets leave."""
        learned = self._last[1].get("fionread_learned", 0)
        if learned != self._learned:
            released = self._programs.release_sockets()
            self._learned = learned
            if released:
                self._failures["evicted_by_agent"] += released

    def _follow_roots(self, now: float) -> None:
        """Attaches to cgroups that come, or come again, while we run."""
        roots = self._roots
        if now >= self._next_roots:
            found = attach_roots(self._config.services, cgroup2=self._cgroup2)
            roots = sorted({*roots, *found})
            walks = any(rule.by == "systemd_unit" for rule in self._config.services)
            self._next_roots = now + (ROOTS_SECONDS if walks else 0.0)
        try:
            fresh = self._programs.reattach(roots)
        except OSError as error:  # it vanished again, or the kernel refuses: status says `missing`
            self._failures["attach_failed"] += 1
            log.warning("not attached: %s", error.strerror)
            return
        if fresh:
            log.info("attached to %s", ", ".join(f"/{root}" for root in fresh))
        if roots != self._roots:
            self._roots = roots
            unresolved = self._services.unresolved
            self._services = self._name_services()
            self._services.unresolved = unresolved

    def _snapshot(self) -> tuple[list[events.DurationRow], dict[str, int]]:
        counters = readings.counters(self._programs.map_fd("tl_counters")) | self._failures
        counters |= self._steps.failures
        counters["undecodable"] = self._undecodable
        counters["unresolved_cgroup"] = self._services.unresolved
        if self._programs.interfaces is not None:
            counters |= self._programs.interfaces.counts
        if self._libraries is not None:
            counters |= {f"tls_{reason}": n for reason, n in self._libraries.failures.items()}
        if self._go is not None:
            counters |= {f"go_{reason}": n for reason, n in self._go.failures.items()}
        return readings.durations(self._programs.map_fd("tl_durations")), counters

    def _send_metrics(self, *, from_cache: bool = False) -> None:
        # imported here: the OpenTelemetry SDK is not needed before the first request propagates
        from throughline import metrics

        rows, counters = self._last if from_cache else self._snapshot()
        now = time.time_ns()
        parts = metrics.duration_metrics(
            rows, lookup=self._services.lookup, start_unix_ns=self._start_unix_ns, now_unix_ns=now
        )
        own = agent_service(host=self._host, resource_attributes=self._config.resource_attributes)
        parts.append(
            metrics.counter_metrics(
                {"throughline.events": counters},
                agent=own,
                start_unix_ns=self._start_unix_ns,
                now_unix_ns=now,
            )
        )
        self._pipeline.submit_metrics(metrics.metrics_data(parts))

    def _write_status(self) -> None:
        self._steps.run("status", lambda: self._status.write(self._describe()))

    def _describe(self) -> dict[str, Any]:
        """The content of the status file; see docs/troubleshooting.md."""
        rows, counters = self._last = self._snapshot()
        missing = self._programs.missing()
        wanted_off = [n for n, g in self._groups.items() if g.wanted and g.state != "on"]
        absent = [f"/{root}" for root in self._roots if not (self._cgroup2 / root).is_dir()]
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started_unix": self._started,
            "counting_since_unix_ns": self._start_unix_ns,
            "updated_unix": time.time(),
            "healthy": not missing and not wanted_off,
            "missing": missing,
            "absent_cgroups": absent,
            "fionread_broken": self._programs.objects.fionread_broken,
            "legacy_programs": self._programs.objects.variant != "",
            "groups": {name: asdict(group) for name, group in self._groups.items()},
            "attached": {"programs": [a.as_json() for a in self._programs.attached]},
            "packets": self._describe_packets(),
            "tls": report.probed(
                self._libraries if self._groups["tls"].state == "on" else None, "tl_ssl_"
            ),
            "go": self._go and report.probed(self._libraries, "tl_go_", self._go.describe),
            "counters": counters,
            "services": report.services(rows, lookup=self._services.lookup, sampled=self._sampled),
            "export": self._pipeline.status().as_json(),
        }

    def _describe_packets(self) -> dict[str, Any] | None:
        if self._groups["packets"].state != "on":
            return None
        return report.packets(
            self._programs.interfaces,
            peers=self._config.propagation.peers,
            cgroups=[a.where for a in self._programs.attached if a.name == "tl_packets_ops"],
        )
