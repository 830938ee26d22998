"""The agent: attaches the programs, drains the kernel's records by the clock, exports them.

The only module that knows all the others. One thread does everything but the export, which has
threads of its own and never holds this one up.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

from throughline import __version__
from throughline.agent import release, report, status
from throughline.agent.status import StatusWriter, notify
from throughline.bpf import libbpf, ringbuffer, traced
from throughline.bpf.counters import read_counters
from throughline.config import model as configuration
from throughline.config.model import Config
from throughline.export.pipeline import Pipeline
from throughline.features import groups
from throughline.features import programs as kernel
from throughline.host import facts, lock
from throughline.host.attributes import host_attributes
from throughline.probes import uprobes
from throughline.probes.libraries import Libraries
from throughline.records import durations
from throughline.records.drain import Records
from throughline.runtimes.go.provider import GoPrograms
from throughline.services import cgroups
from throughline.services.naming import Services, agent_service
from throughline.services.rules import attach_roots, find_roots
from throughline.steps import Steps, Turns, finish
from throughline.telemetry.series import Series
from throughline.telemetry.totals import Totals
from throughline.tls import openssl

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
WORK_SECONDS, REST_SECONDS = 0.02, 0.005  # of housekeeping between two drains, and behind it
SWEEP_SECONDS = 60.0  # between looks for requests whose end was not seen
ROOTS_SECONDS = 5.0  # between looks for new top-level cgroups where that means a walk over all
# The unit's TimeoutStartSec is for one group, not for all: sd_notify(3).
GROUP_TIMEOUT = "EXTEND_TIMEOUT_USEC=60000000"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


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
        self._services = Services(
            config.services,
            cgroup2=found.cgroup2,
            host=self._host,
            resource_attributes=config.resource_attributes,
            roots=self._roots,
        )
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
        stack.callback(self._pipeline.close)  # however this run ends: what is queued goes on disk
        self._status = StatusWriter(config.agent.status_path)
        self._groups: dict[str, groups.Group] = {}
        self._libraries: Libraries | None = None  # of the groups `tls` and `go`
        self._go: GoPrograms | None = None
        self._next_roots = self._next_sweep = 0.0
        self._failures: Counter[str] = Counter()
        # what an earlier run counted goes on with the kernel's own totals
        earlier = status.last(config.agent.status_path) if self._programs.adopting else {}
        since = earlier.get("counting_since_unix_ns")
        self._start_unix_ns = since if isinstance(since, int) else time.time_ns()
        sampled = status.sampled(earlier)
        self._records = Records(self._services, self._pipeline.submit, sampled=sampled)
        stack.callback(self._records.end)
        self._learned = 0  # processes that call FIONREAD
        self._counters: dict[str, int] = {}  # as of the last status
        self._work: Turns[None] | None = None  # housekeeping that has begun

    # -- start and end -----------------------------------------------------------------------------

    def attach(self) -> bool:
        """Attaches every wanted group; False when one that is required cannot work."""
        outcome = groups.attach(
            self._programs, self._config, self._facts, before=lambda: self._notify(GROUP_TIMEOUT)
        )
        self._groups = outcome.groups
        if outcome.kind is not None and outcome.probing:
            self._probe(outcome.probing, outcome.kind)
        groups.tell(self._groups)
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
        ring = ringbuffer.RingBuffer(self._programs.map_fd("tl_spans"), self._records.receive)
        self._cgroups = traced.TracedCgroups(self._programs.map_fd("tl_cgroups"))
        self._series = Series(
            durations.duration_map(self._programs.map_fd("tl_durations")),
            services=self._services,
            path=self._config.agent.runtime_directory / "series.json",
            start_unix_ns=self._start_unix_ns,
            adopting=self._programs.adopting,
        )
        steps = self._steps
        finish(steps.turns("tick", self._tick(time.monotonic())))
        self._notify("READY=1")
        log.info("attached to %s", ", ".join(f"/{root}" for root in self._roots) or "no cgroup")
        self._pipeline.start()
        interval = self._config.agent.drain_interval
        next_tick = time.monotonic() + TICK_SECONDS
        next_metrics = time.monotonic() + self._config.export.metrics_interval
        while True:
            steps.run("drain", partial(self._records.drain, ring))
            now = time.monotonic()
            if self._stop == signal.SIGHUP:
                self._stop = 0
                self._reload(ring)
            elif self._stop:
                break
            if self._work is None:
                if now >= next_tick:
                    next_tick = now + TICK_SECONDS
                    self._work = steps.turns("tick", self._tick(now))
                elif self._config.export.metrics_enabled and now >= next_metrics:
                    next_metrics = now + self._config.export.metrics_interval
                    self._work = steps.turns("metrics", self._send_metrics())
                elif self._records.waiting and self._services.may_refresh():
                    self._work = steps.turns("name_services", self._name_records())
            self._go_on()
            time.sleep(interval if self._work is None else min(interval, REST_SECONDS))
        self._notify("STOPPING=1")
        for _ in self._work or ():  # what has begun
            pass
        steps.run("detach", self._files.close)
        if self._config.export.metrics_enabled:
            steps.run("metrics", lambda: finish(self._read_series()))
        self._programs.detach()
        steps.run("drain", partial(self._records.drain, ring))
        steps.run("name_services", lambda: finish(self._name_records()))
        ring.close()
        if self._config.export.metrics_enabled:
            steps.run("metrics", self._submit_metrics)
        self._pipeline.close()
        self._series.remove()
        self._status.remove()
        log.info("detached")
        return 0

    def _notify(self, message: str) -> None:
        self._steps.run("notify", lambda: notify(message))

    def _on_signal(self, number: int, _frame: object) -> None:
        # an end is not undone by a reload that comes behind it
        if self._stop in (0, signal.SIGHUP):
            self._stop = number

    def _reload(self, ring: ringbuffer.RingBuffer) -> None:
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
        self._records.end(self._work)
        self._files.close()  # execve(2) may let go of a lease before the probes
        self._records.drain(ring)
        self._records.end()
        ring.close()
        self._pipeline.close()
        release.execute(program, self._config.path, lock.hand_over(self._lock))

    # -- housekeeping ------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Does some of the housekeeping that has begun: what others have made may be much."""
        until = time.monotonic() + WORK_SECONDS
        for _ in self._work or ():
            if time.monotonic() >= until:
                return
        self._work = None

    def _tick(self, now: float) -> Turns[None]:
        """What is done each second."""
        steps = self._steps
        yield from steps.turns("follow_roots", self._follow_roots(now))
        yield from steps.turns("name_services", self._name_records())
        steps.run("sync_cgroups", self._sync_cgroups)
        yield from self._follow(now)
        yield from steps.turns("read_series", self._series.reading())
        self._write_status()
        yield
        steps.run("release_sockets", self._release_sockets)

    def _name_records(self) -> Turns[None]:
        """Walks over the cgroups, and names the records that have waited for that."""
        waiting = self._records.take_waiting()
        try:
            yield from self._services.refreshing()
        finally:
            self._records.name(waiting)

    def _sync_cgroups(self) -> None:
        """Tells the kernel which cgroups are traced."""
        wanted = self._services.traced()
        if self._own_cgroup is not None:
            wanted[self._own_cgroup] = False
        full = self._cgroups.tell(wanted)
        if full:
            self._failures["full_cgroups"] += full

    def _follow(self, now: float) -> Turns[None]:
        """Files and network interfaces that have come or gone; requests that nobody ends."""
        steps = self._steps
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            steps.run("sweep", self._sweep)
        if self._libraries is not None:
            files = self._libraries
            paths = self._services.traced_paths()
            yield from steps.turns("follow_files", files.following(paths))
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
        learned = self._counters.get("fionread_learned", 0)
        if learned != self._learned:
            released = self._programs.release_sockets()
            self._learned = learned
            if released:
                self._failures["evicted_by_agent"] += released

    def _follow_roots(self, now: float) -> Turns[None]:
        """Attaches to cgroups that come, or come again, while we run."""
        roots = self._roots
        if now >= self._next_roots:
            found = yield from find_roots(self._config.services, cgroup2=self._cgroup2)
            roots = sorted({*roots, *found})
            walks = any(rule.by == "systemd_unit" for rule in self._config.services)
            self._next_roots = now + (ROOTS_SECONDS if walks else 0.0)
        fresh, failures = self._programs.reattach(roots)
        for error in failures:  # tried again each second, said once
            if not self._failures["attach_failed"]:
                log.warning("not attached: %s", error.strerror)
            self._failures["attach_failed"] += 1
        if fresh:
            log.info("attached to %s", ", ".join(f"/{root}" for root in fresh))
        if roots != self._roots:
            self._roots = roots
            self._services.follow(roots)

    def _count(self) -> dict[str, int]:
        counters = read_counters(self._programs.map_fd("tl_counters")) | self._failures
        counters |= self._steps.failures
        counters["undecodable"] = self._records.undecodable
        counters["unresolved_cgroup"] = self._services.unresolved
        counters["cgroup_unreadable"] = self._services.unreadable
        counters["cgroups_too_many"] = self._services.too_many
        counters["series_unwritten"] = self._series.failures
        if self._programs.interfaces is not None:
            counters |= self._programs.interfaces.counts
        if self._libraries is not None:
            counters |= {f"tls_{reason}": n for reason, n in self._libraries.failures.items()}
        if self._go is not None:
            counters |= {f"go_{reason}": n for reason, n in self._go.failures.items()}
        return counters

    def _read_series(self) -> Turns[None]:
        yield from self._series.reading()
        yield from self._series.decoding()
        self._counters = self._count()

    def _send_metrics(self) -> Turns[None]:
        yield from self._read_series()
        self._submit_metrics()

    def _submit_metrics(self) -> None:
        own = agent_service(host=self._host, resource_attributes=self._config.resource_attributes)
        since = self._start_unix_ns, int(self._started * 1e9)
        points = tuple(self._series.points())
        self._pipeline.submit_metrics(Totals(points, self._counters, own, *since, time.time_ns()))

    def _write_status(self) -> None:
        self._steps.run("status", lambda: self._status.write(self._describe()))

    def _describe(self) -> dict[str, Any]:
        """The content of the status file; see docs/troubleshooting.md."""
        counters = self._counters = self._count()
        self._records.forget_names(self._series.names)
        missing = self._programs.missing()
        wanted_off = [n for n, g in self._groups.items() if g.wanted and g.state != "on"]
        absent = [f"/{root}" for root in self._roots if not cgroups.exists(self._cgroup2 / root)]
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
            "services": report.services(self._series.counts(), sampled=self._records.sampled),
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
