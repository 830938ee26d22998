"""The measurements, each with the agent off and on by turns."""

from __future__ import annotations

import contextlib
import http.client
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import load, probes
from tests.bench.load import SCENARIOS, SECURE, ProgramTime, Rate, Scenario
from tests.fixtures.paths import SERVICES
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.traced import Traced
from tests.fixtures.waiting import poll, until

ROUNDS = 5
SECONDS = 2.0
OFF, UNSAMPLED, SAMPLED = "off", "on, nothing sampled", "on, all sampled"
OUTSIDE, INSIDE = "on, without `tls`", "on, with `tls`"
SECURE_STATES = (OFF, OUTSIDE, INSIDE)
STATES = (OFF, UNSAMPLED, SAMPLED)
_SAMPLER = {UNSAMPLED: "always_off", SAMPLED: "always_on"}
_PYTHON_SERVICE = SERVICES / "origin.py"
_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")

Say = Callable[[str], None]


Rates = dict[tuple[str, str], list[Rate]]  # by scenario and state, one for each round
Spent = dict[tuple[str, str], list[float]]  # microseconds for each request, likewise


@dataclass(slots=True)
class Results:
    """Everything measured. Lists hold one value for each round."""

    load_before: float = 0.0  # load average over a minute
    others: int = 0  # agents on this kernel that are not ours: what they cost is in "off"
    rates: Rates = field(default_factory=lambda: defaultdict(list))
    service_us: Spent = field(default_factory=lambda: defaultdict(list))
    programs: dict[tuple[str, str], dict[str, tuple[float, float]]] = field(default_factory=dict)
    stats_ns: float = 0.0  # what the statistics themselves add to each run of a program
    agent_us: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    idle_cpu_percent: float = 0.0
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    saturated: dict[str, float] = field(default_factory=dict)
    start_seconds: list[float] = field(default_factory=list)
    syscall_ns: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    secure: Rates = field(default_factory=lambda: defaultdict(list))
    secure_us: Spent = field(default_factory=lambda: defaultdict(list))
    secure_programs: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    probes_ns: dict[str, float] = field(default_factory=dict)
    others_ns: dict[str, tuple[float, float]] = field(default_factory=dict)


class Bench:
    """A traced nginx in front of an untraced one, and the agent that comes and goes."""

    def __init__(self, traced: Traced, stack: ExitStack, say: Say) -> None:
        self._traced = traced
        self._say = say
        self._directory = traced.directory
        self.front, self._back = free_port(), free_port()
        config = load.nginx_config(self._directory, name="back", front=self.front, back=self._back)
        back = subprocess.Popen(load.nginx_command(config))
        stack.callback(end, back)
        wait_port(self._back)
        self._secure = free_port()
        config = load.nginx_config(
            self._directory,
            name="front",
            front=self.front,
            back=self._back,
            secure=self._secure,
        )
        self._nginx = traced.spawn("front", load.nginx_command(config))
        wait_port(self.front)
        self._worker = load.children(self._nginx.pid)[0]
        self._python_port = free_port()
        python = [sys.executable, str(_PYTHON_SERVICE), str(self._python_port)]
        # exec all the way: the process is the service
        self._python = traced.spawn(
            "python", ["taskset", "-c", load.NGINX_CPU, *python], stderr=subprocess.DEVNULL
        )
        wait_port(self._python_port)

    def _renew_worker(self) -> None:
        """A new worker, so that no upstream connection is older than the agent."""
        old = self._worker
        self._nginx.send_signal(signal.SIGHUP)
        [self._worker] = until(
            lambda: load.children(self._nginx.pid),
            enough=lambda found: old not in found and len(found) == 1,
            seconds=5,
            every=0.02,
            otherwise=f"nginx keeps its worker {old}",
        )

    # -- the agent -----------------------------------------------------------------------------

    def _start(self, state: str, **changes: Any) -> None:
        if state == OFF:
            self._renew_worker()
            time.sleep(0.5)
            return
        start_agent(self._traced, state, sink=self._back, **changes)
        self._renew_worker()
        time.sleep(1.0)  # the sender thread imports, the first status is written

    def _stop(self) -> None:
        stop_agent(self._traced)

    @contextlib.contextmanager
    def _agent(self, state: str, **changes: Any) -> Iterator[None]:
        """The agent in a state; `changes` of its configuration beside the groups of plaintext."""
        self._start(state, **changes)
        try:
            yield
        finally:
            self._stop()

    @property
    def _pid(self) -> int:
        assert self._traced.agent is not None
        return self._traced.agent.pid

    def _status(self) -> dict[str, Any]:
        """A status written after this call began."""
        now = time.time()
        while True:
            status = self._traced.status()
            if status is not None and status["updated_unix"] > now:
                return status
            time.sleep(0.05)

    def _ids(self) -> dict[int, str]:
        programs = self._status()["attached"]["programs"]
        return {program["id"]: program["name"] for program in programs}

    def _settled(self) -> dict[str, Any]:
        """The status once every span that was sent has been exported or dropped."""

        def is_settled(status: dict[str, Any]) -> bool:
            done = status["export"]["exported_spans"] + status["export"]["dropped_spans"]
            return bool(done >= status["counters"]["spans_sent"])

        return poll(self._status, enough=is_settled, seconds=30, every=0)

    # -- requests per second -------------------------------------------------------------------

    def rates(self, results: Results) -> None:
        """Saturation: requests/s, latency, and the service's own CPU time for each request."""
        for turn in range(ROUNDS):
            for state in STATES[turn % 3 :] + STATES[: turn % 3]:
                with self._agent(state):
                    for scenario in SCENARIOS:
                        self._rate(scenario, state, results.rates, results.service_us)
                    if state == SAMPLED:
                        self._note_saturated(results)
            self._say(f"requests/s: round {turn + 1} of {ROUNDS}")

    def _rate(self, scenario: Scenario, state: str, rates: Rates, spent: Spent) -> None:
        """One run of wrk: its rate, and the service's own CPU microseconds for each request."""
        before = self._service_cpu(scenario)
        rate = self._wrk(scenario)
        used = self._service_cpu(scenario) - before
        rates[scenario.name, state].append(rate)
        spent[scenario.name, state].append(used / max(1, rate.requests) * 1e6)

    def _wrk(self, scenario: Scenario, *, seconds: float = SECONDS, delay_ms: int = 0) -> Rate:
        port = {
            ("nginx", False): self.front,
            ("nginx", True): self._secure,
            ("python", False): self._python_port,
        }[scenario.service, scenario.tls]
        return load.wrk(self._directory, port, scenario, seconds=seconds, delay_ms=delay_ms)

    def _service_cpu(self, scenario: Scenario) -> float:
        # threads of the Python service end with their connection: what they used counts, too
        if scenario.service == "nginx":
            return load.cpu_seconds(self._worker)
        return load.ended_cpu_seconds(self._python.pid)

    def _note_saturated(self, results: Results) -> None:
        results.memory["under saturation"] = load.memory_mib(self._pid)
        status = self._settled()
        counters, export = status["counters"], status["export"]
        ended = counters["requests_server"] + counters["requests_client"]
        results.saturated = {
            "requests": ended,
            "exported": export["exported_spans"],
            "ring full": counters["spans_dropped_ring_full"],
            "dropped in user space": export["dropped_spans"],
            "spooled": export["spool_bytes"],
        }

    # -- time in BPF ---------------------------------------------------------------------------

    def programs(self, results: Results) -> None:
        """Nanoseconds and runs of each program for each request (statistics cost some, too)."""
        program = load.build_syscalls(self._directory)
        for state in (UNSAMPLED, SAMPLED):
            with self._agent(state), statistics():
                ids = self._ids()
                results.stats_ns = statistics_ns(program, ids)
                for scenario in SCENARIOS:
                    was = load.program_times(ids)
                    rate = self._wrk(scenario)
                    now = load.program_times(ids)
                    results.programs[scenario.name, state] = {
                        name: per_request(was[name], now[name], rate.requests) for name in was
                    }
            self._say(f"time in BPF: {state}")

    # -- the agent's own cost --------------------------------------------------------------------

    def agent(self, results: Results) -> None:
        """CPU for each request beyond what an idle agent uses; memory."""
        scenario = SCENARIOS[0]
        for state in (SAMPLED, UNSAMPLED):
            with self._agent(state):
                # the first span and the first second of work bring in what is imported late
                self._wrk(scenario, seconds=1, delay_ms=20)
                self._settled()
                before, start = load.cpu_seconds(self._pid), time.monotonic()
                time.sleep(5)
                idle = (load.cpu_seconds(self._pid) - before) / (time.monotonic() - start)
                results.idle_cpu_percent = idle * 100
                results.memory[f"idle ({state})"] = load.memory_mib(self._pid)
                for _ in range(ROUNDS):
                    before, start = load.cpu_seconds(self._pid), time.monotonic()
                    # at a rate that the agent can follow, so that every request counts
                    delay_ms = 20 if state == SAMPLED else 0
                    rate = self._wrk(scenario, delay_ms=delay_ms)
                    self._settled()
                    spent = load.cpu_seconds(self._pid) - before
                    spent -= idle * (time.monotonic() - start)
                    results.agent_us[state].append(spent / max(1, rate.requests) * 1e6)
                results.memory[f"under load ({state})"] = load.memory_mib(self._pid)
            self._say(f"the agent's CPU: {state}")

    def starts(self, results: Results) -> None:
        """From exec of the agent to the first request that reaches the back with a traceparent."""
        for _ in range(ROUNDS):
            self._traced.configure(sampling={"sampler": "always_on"})
            started = time.monotonic()
            self._traced.start_agent(wait=False)
            try:
                while not self._propagated():
                    if time.monotonic() - started > 20:
                        raise TimeoutError(f"nothing propagates:\n{self._traced.log()}")
                    time.sleep(0.005)
                results.start_seconds.append(time.monotonic() - started)
                self._traced.wait_running()
            finally:
                self._stop()
        self._say("start")

    def _propagated(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.front, timeout=5)
        connection.request("GET", "/fresh")
        body = connection.getresponse().read()
        connection.close()
        return len(body) == 55

    # -- TLS, and the cost for packets of others -----------------------------------------------

    def tls(self, results: Results) -> None:
        """HTTPS without the agent, with it but for the group `tls`, and with that."""
        for turn in range(ROUNDS):
            for state in SECURE_STATES[turn % 3 :] + SECURE_STATES[: turn % 3]:
                with self._secured(state):
                    for scenario in SECURE:
                        self._rate(scenario, state, results.secure, results.secure_us)
            self._say(f"TLS: round {turn + 1} of {ROUNDS}")
        with self._secured(INSIDE), statistics():
            ids = load.loaded()
            for scenario in SECURE:
                was = load.program_times(ids)
                rate = self._wrk(scenario)
                now = load.program_times(ids)
                results.secure_programs[scenario.name] = {
                    name: per_request(was[name], now[name], rate.requests) for name in was
                }
        results.probes_ns = probes.prices(self._directory)
        self._say("TLS: time in BPF, price of a probe")

    @contextlib.contextmanager
    def _secured(self, state: str) -> Iterator[None]:
        on = OFF if state == OFF else UNSAMPLED
        inside = "auto" if state == INSIDE else "off"
        with self._agent(on, instrumentation={"tls": inside, "go": "off"}):
            if state == INSIDE:
                self._wait_probed()
            yield

    def _wait_probed(self) -> None:
        until(
            lambda: (self._status()["tls"] or {}).get("files"),
            seconds=15,
            every=0,
            otherwise=self._traced.log,
        )

    def others(self, results: Results) -> None:
        """The cost of a packet that is neither from nor for a peer, in the programs that see it."""
        peers = {"propagation": {"peers": ["192.0.2.0/24"]}}
        with self._agent(UNSAMPLED, **peers), statistics():
            ids = load.loaded()
            was = load.program_times(ids)
            self._wrk(SCENARIOS[0])
            now = load.program_times(ids)
            for name in ("tl_packets_out", "tl_packets_ops", "tl_ingress"):
                runs = now[name].runs - was[name].runs
                spent = now[name].nanoseconds - was[name].nanoseconds
                results.others_ns[name] = (spent / max(1, runs), runs)
        self._say("packets of others")

    def syscalls(self, results: Results) -> None:
        """The tracepoint at the entry of every system call of the host."""
        program = load.build_syscalls(self._directory)
        for turn in range(ROUNDS):
            for state in ((OFF, UNSAMPLED), (UNSAMPLED, OFF))[turn % 2]:
                with self._agent(state):
                    # the least of some short ones: others may use the processor
                    results.syscall_ns[state].append(
                        min(load.null_syscall(program) for _ in range(5))
                    )
        self._say("system calls")


def start_agent(traced: Traced, state: str, *, sink: int, **changes: Any) -> None:
    """Starts the agent in a state, which exports to the port `sink`; `changes` of its configuration
    beside the groups of plaintext."""
    traced.configure(
        sampling={"sampler": _SAMPLER[state]},
        export={"otlp": {"endpoint": f"http://127.0.0.1:{sink}"}},
        agent={"drain_interval": 0.1},
        **{"instrumentation": {"tls": "off", "go": "off"}, "propagation": {}, **changes},
    )
    traced.start_agent()


def stop_agent(traced: Traced) -> None:
    if traced.agent is not None and traced.agent.poll() is None:
        assert traced.stop_agent() == 0, traced.log()


def statistics_ns(program: Path, ids: dict[int, str]) -> float:
    """What the statistics themselves add to each run of a program, with `load.build_syscalls`.

    At a null system call tl_tick does nothing: what remains is their own.
    """
    before = load.program_times(ids)["tl_tick"]
    load.null_syscall(program)
    total, runs = per_request(before, load.program_times(ids)["tl_tick"], 1)
    return total / max(1.0, runs)


@contextlib.contextmanager
def statistics() -> Iterator[None]:
    """kernel.bpf_stats_enabled for a while."""
    saved = _STATS.read_text()
    _STATS.write_text("1")
    try:
        yield
    finally:
        _STATS.write_text(saved)


def per_request(before: ProgramTime, after: ProgramTime, requests: int) -> tuple[float, float]:
    """Nanoseconds and runs."""
    total = max(1, requests)
    return (after.nanoseconds - before.nanoseconds) / total, (after.runs - before.runs) / total


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def spread(values: list[float]) -> tuple[float, float, float]:
    """Minimum, median, maximum."""
    return min(values), median(values), max(values)
