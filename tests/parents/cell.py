"""Runs one application: each behaviour in a process of its own, 1, 8 and 32 requests at a time."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fixtures import cgroup, postgres, process
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.traced import Traced
from tests.fixtures.waiting import START_SECONDS, poll, until
from tests.parents import grpc_driver
from tests.parents.app import App, Behaviour, Place
from tests.parents.driver import drive
from tests.parents.judge import Result, judge, number_of
from throughline.bpf import libbpf
from throughline.bpf.runtimes import Entry, Runtimes

# Primes: at so many requests at a time, so many are sent.
REQUESTS: Mapping[int, int] = {1: 23, 8: 101, 32: 503}
_AFTER_SECONDS = 15.0  # for calls that are made after the answers
_SPANS_SECONDS = 10.0
_AGENT_SECONDS = 120.0  # to start, on a machine that does much else
_LOOK_SECONDS = 2.5  # the age of processes at which the agent has looked at them
_QUIET_SECONDS = 1.0  # without a new span, after which none is awaited any more
_REASONS = ("root_", "parent_job", "skip_", "lost_", "full_", "evicted", "enrol_", "spans_dropped")


@dataclass(slots=True)
class Instance:
    """One running instance of an application."""

    behaviour: Behaviour
    place: Place
    services: list[str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)


class Bench:
    """The agent, the backend and the Redis that all applications share."""

    def __init__(
        self, traced: Traced, backend: int, redis: int, stack: contextlib.ExitStack
    ) -> None:
        self.traced = traced
        self._stack = stack
        self._postgres = 0  # its port, once an application has needed it
        self._backend = backend
        self._redis = redis
        self._counters: dict[str, int] = {}  # at the end of the last cell
        self._first = 0  # numbers go on from cell to cell

    def run(
        self, app: App, behaviours: Sequence[Behaviour], requests: Mapping[int, int]
    ) -> Iterator[tuple[Behaviour, Result]]:
        """Yields a result for each behaviour and each number of requests at a time."""
        app.install()
        for behaviour in behaviours:
            with self.instance(app, behaviour) as instance:
                for concurrent, count in requests.items():
                    yield behaviour, self._measure(app, instance, concurrent, count)

    def run_across(
        self,
        app: App,
        behaviour: Behaviour,
        requests: Mapping[int, int],
        *,
        number: int = signal.SIGTERM,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Iterator[Result]:
        """As `run`. The agent ends by a signal after the first result; its successor goes on."""
        steps = self.run(app, (behaviour,), requests)
        yield next(steps)[1]
        meanwhile()
        self.traced.stop_agent(number)
        self.traced.start_agent()
        for _, result in steps:
            yield result

    @contextlib.contextmanager
    def instance(self, app: App, behaviour: Behaviour) -> Iterator[Instance]:
        traced = self.traced
        folder = traced.directory / "places" / f"{app.name}-{behaviour.value}"
        folder.mkdir(parents=True)
        for directory in (traced.directory, folder.parent, folder):
            directory.chmod(0o777)
        place = Place(
            port=free_port(),
            spare=free_port(),
            backend=self._backend,
            redis=self._redis,
            postgres=self._started_postgres() if app.postgres else 0,
            folder=folder,
        )
        described = app.start(place)
        names = ["-".join(filter(None, (folder.name, one.name))) for one in described]
        instance = Instance(behaviour, place, names)
        for name in names:
            (traced.cgroup / name).mkdir()
        log = folder / "log"
        poller = {"POLLER": "1"} if behaviour is Behaviour.POLLER else {}
        try:
            with log.open("wb") as output:
                for name, one in reversed(list(zip(names, described, strict=True))):
                    environment = {**_PLAIN, **place.environment, **poller, **one.environment}
                    instance.processes.append(
                        traced.spawn(
                            name,
                            one.command,
                            env=environment,
                            cwd=folder,
                            start_new_session=True,  # Apache ends its whole process group
                            stdin=subprocess.DEVNULL,
                            stdout=output,
                            stderr=output,
                        )
                    )
                    if one.listens is not None:
                        ready = functools.partial(_accepts, one.listens)
                        until(ready, otherwise=lambda: _end_of(log))
            try:
                wait_port(place.port, seconds=max(60.0, START_SECONDS))
            except TimeoutError as error:
                raise RuntimeError(f"{folder.name} does not start: {_end_of(log)}") from error
            self._wait_followed(app, names)
            self._counters = traced.counters()  # the agent has looked at all processes since
            self.take()
            yield instance
        finally:
            process.end(*instance.processes)
            for name in names:
                cgroup.kill(traced.cgroup / name)
                cgroup.remove(traced.cgroup / name)
            shutil.rmtree(folder, ignore_errors=True)

    def _started_postgres(self) -> int:
        if not self._postgres:
            self._postgres = self._stack.enter_context(postgres.running())
        return self._postgres

    def _wait_followed(self, app: App, services: Sequence[str]) -> None:
        """Waits until a provider follows a process of the application, if the group is on."""

        def is_followed() -> bool:
            group = (self.traced.status() or {}).get(app.follows)
            return not group or any(file["processes"] for file in group["files"])

        if app.follows:
            poll(is_followed, seconds=START_SECONDS, every=0.1)
        if app.follows in ("python", "proxies", "ruby"):
            # the agent looks each second at processes that have come, and at what they run
            pids = [pid for name in services for pid in cgroup.pids(self.traced.cgroup / name)]
            time.sleep(max(0.0, _LOOK_SECONDS - min(map(_age, pids), default=0.0)))
            if app.accepts:
                poll(
                    lambda: any(entry.acceptor for entry in self.known(pids)),
                    seconds=START_SECONDS,
                    every=0.1,
                )

    def known(self, pids: Iterable[int]) -> list[Entry]:
        """What the programs know of these processes, without those that they do not know."""
        table = libbpf.get_pinned(next(self.traced.bpffs.glob("abi*/tl_runtimes")))
        try:
            found = [Runtimes(table).find(pid) for pid in pids]
        finally:
            os.close(table)
        return [entry for entry in found if entry is not None]

    def _measure(self, app: App, instance: Instance, concurrent: int, count: int) -> Result:
        numbers = range(self._first, self._first + count)
        self._first += count
        result = Result(concurrent, count)
        self.traced.receiver.forget_spans()
        self.take()
        before = self._counters
        port, behaviour = instance.place.port, instance.behaviour
        if app.protocol == "grpc":
            result.failures = grpc_driver.drive(port, behaviour, numbers, concurrent=concurrent)
        else:
            secure = app.protocol == "https"
            result.failures = drive(port, behaviour, numbers, concurrent=concurrent, secure=secure)
        calls = self._calls(behaviour, numbers)
        of_last = {target for target, _ in calls}
        self._wait_spans(count * len(instance.services), of_last)
        after = self._counters = self.traced.counters()
        spans = self.traced.receiver.spans
        judge(result, calls, spans, services=instance.services, behaviour=behaviour)
        result.reasons = {
            name: total - before.get(name, 0)
            for name, total in sorted(after.items())
            if name.startswith(_REASONS) and total != before.get(name, 0)
        }
        return result

    def _calls(self, behaviour: Behaviour, numbers: range) -> list[tuple[str, str]]:
        """The calls that were made for the requests, and by a poller meanwhile."""
        taken = self.take()
        if behaviour is Behaviour.AFTER:
            deadline = time.monotonic() + _AFTER_SECONDS
            while time.monotonic() < deadline and len(taken) < len(numbers):
                time.sleep(0.1)
                taken += self.take()
        return [one for one in taken if one[0].startswith("/poll") or number_of(one[0]) in numbers]

    def _wait_spans(self, servers: int, calls: set[str]) -> None:
        """Waits for the spans of requests and calls, or until no more come."""
        last, changed = -1, time.monotonic()
        deadline = time.monotonic() + _SPANS_SECONDS  # a poller is never quiet
        while time.monotonic() < deadline:
            spans = self.traced.receiver.spans
            if len(spans) != last:
                last, changed = len(spans), time.monotonic()
                seen = Counter(span.kind for span in spans)
                if seen["SERVER"] >= servers and calls <= {
                    span.path for span in spans if span.kind == "CLIENT"
                }:
                    return
            elif time.monotonic() - changed > _QUIET_SECONDS:
                return
            time.sleep(0.05)

    def take(self) -> list[tuple[str, str]]:
        """What has reached the backend since."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._backend}/taken", timeout=20) as found:
            return [(target, header) for target, header in json.load(found)]


_PLAIN = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}


def _age(pid: int) -> float:
    """Seconds since a process began; infinite where it has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return math.inf
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(words[19]) / os.sysconf("SC_CLK_TCK")


def _accepts(where: Path | int) -> bool:
    """Returns whether a process listens on the port, or socket file, which exists before."""
    with socket.socket(socket.AF_INET if isinstance(where, int) else socket.AF_UNIX) as client:
        address = ("127.0.0.1", where) if isinstance(where, int) else str(where)
        return client.connect_ex(address) == 0


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


@contextlib.contextmanager
def bench(parents: str = "proven", **config: object) -> Iterator[Bench]:
    """What all applications share, while the block runs.

    `parents`: propagation.parents. `config`: more sections of the agent's configuration.
    """
    backend, redis = free_port(), free_port()
    far = [sys.executable, "-m", "tests.parents.backend", str(backend)]
    given = config.pop("propagation", {})
    assert isinstance(given, dict)
    config["propagation"] = {"parents": parents, **given}
    with Traced(config, start=False) as traced, process.running(far):
        traced.start_agent(wait=False)
        traced.wait_running(seconds=_AGENT_SECONDS)
        kept = ["redis-server", "--bind", "127.0.0.1", "--port", str(redis), "--save", ""]
        options = {"cwd": traced.directory, "stdout": subprocess.DEVNULL}
        with process.running(kept, **options):
            wait_port(backend)
            wait_port(redis)
            with contextlib.ExitStack() as stack:
                yield Bench(traced, backend, redis, stack)
