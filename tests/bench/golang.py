"""Measures what tracing costs services of Go, off and on by turns, here or in a VM.

python -m tests.bench.golang [--rounds N] [--seconds N]   prints the results as JSON
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import load, probes
from tests.bench.load import NGINX_CPU, WRK_CPU, Rate, Scenario
from tests.bench.measure import (
    OFF,
    UNSAMPLED,
    Say,
    end,
    per_request,
    start_agent,
    statistics,
    statistics_ns,
    stop_agent,
)
from tests.fixtures.go.build import STRIPPED, build
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.traced import Traced

ROUNDS, SECONDS = 3, 2  # wrk knows whole seconds only
CONNECTIONS = 64
FOLLOWED_SECONDS = 180.0  # in an emulated machine the analysis takes long
OUTSIDE, INSIDE, WRITING = "on, without `go`", "on, with `go`", "on, with `go` and `go_write`"
STATES = (OFF, OUTSIDE, INSIDE, WRITING)
_GROUPS = {OUTSIDE: ("off", "off"), INSIDE: ("auto", "off"), WRITING: ("auto", "auto")}
_METHOD = "/throughline.test.Hops/Unary"


@dataclass(frozen=True, slots=True)
class Service:
    """A traced service, and the requests that it gets: `path` is a plan of tests/services/go."""

    name: str
    program: str
    path: str
    tls: bool = False
    calls: str = ""  # the protocol of its calls: "https/1", "https/2" or "grpc"


HTTP, GRPC = "chain/server", "grpc/server"
SERVICES = (
    Service("net/http", HTTP, "/answer/7"),
    Service("net/http, TLS", HTTP, "/answer/7", tls=True),
    Service("net/http, one call by HTTPS", HTTP, "/context/answer/7", calls="https/1"),
    Service("net/http, one call by HTTP/2", HTTP, "/context/answer/7", calls="https/2"),
    Service("gRPC", GRPC, "/answer/7"),
    Service("gRPC, one call by gRPC", GRPC, "/unary/answer/7", calls="grpc"),
)
Programs = dict[str, tuple[float, float]]  # by program: nanoseconds and runs for each request


@dataclass(slots=True)
class Results:
    """The results of one machine. Lists hold one value for each round."""

    date: str
    kernel: str
    processors: int
    rounds: int
    seconds: int
    connections: int  # that ask a service at the same time; a few carry all calls of gRPC
    load_before: float
    load_after: float = 0.0
    others: int = 0  # agents on this kernel that are not ours: what they cost is in "off"
    unwritten: str = ""  # why go_write is off here
    rates: dict[str, dict[str, list[Rate]]] = field(default_factory=dict)  # by service and state
    service_us: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # for each request
    programs: dict[str, Programs] = field(default_factory=dict)  # by service
    stats_ns: float = 0.0  # what the statistics themselves add to each run of a program
    probes_ns: dict[str, float] = field(default_factory=dict)

    def states(self) -> tuple[str, ...]:
        return STATES[:-1] if self.unwritten else STATES

    def json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Results:
        said: dict[str, Any] = json.loads(text)
        said["rates"] = {
            service: {state: [Rate(**rate) for rate in rates] for state, rates in states.items()}
            for service, states in said["rates"].items()
        }
        return cls(**said)


def build_services() -> None:
    """Builds what is missing; a VM has no package registry."""
    for program in (HTTP, GRPC):
        build(program, flags=STRIPPED)


class Bench:
    """Services of Go in the traced corner, and the agent that comes and goes."""

    def __init__(self, traced: Traced, stack: ExitStack) -> None:
        self._traced = traced
        self._directory = traced.directory
        self._sink, self._upstream = free_port(), free_port()
        config = load.nginx_config(
            self._directory, name="upstream", back=self._sink, secure=self._upstream
        )
        nginx = subprocess.Popen(load.nginx_command(config))
        stack.callback(end, nginx)
        self._certificate = self._directory / "both.pem"
        # files of our own: a probe is in the file, and tests may run the same programs
        self._files = {
            program: self._copy(program, program.replace("/", "-")) for program in (HTTP, GRPC)
        }
        self._grpc_upstream = free_port()
        # outside of the traced cgroups, and so never probed
        callee = subprocess.Popen(
            [*_pinned(WRK_CPU, self._copy(GRPC, "callee")), _listen(self._grpc_upstream)],
            env={**os.environ, "GOMAXPROCS": "1"},
        )
        stack.callback(end, callee)
        for port in (self._sink, self._upstream, self._grpc_upstream):
            wait_port(port)
        for service in SERVICES:
            (traced.cgroup / _cgroup(service)).mkdir(exist_ok=True)

    def measure(
        self,
        rounds: int = ROUNDS,
        seconds: int = SECONDS,
        connections: int = CONNECTIONS,
        *,
        say: Say,
    ) -> Results:
        """Without rounds only the times of the programs are taken."""
        results = Results(
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            kernel=platform.release(),
            processors=os.cpu_count() or 0,
            rounds=rounds,
            seconds=seconds,
            connections=connections,
            load_before=os.getloadavg()[0],
            others=load.agents(),
        )
        self._time_programs(results, say)
        states = results.states()
        for turn in range(rounds):
            for number in range(len(states)):
                state = states[(turn + number) % len(states)]
                with self._running(state, say) as running:
                    for service in SERVICES:
                        self._rate(service, state, running, results)
            say(f"Go: that was round {turn + 1} of {rounds}")
        results.probes_ns = probes.prices(self._directory)
        results.load_after = os.getloadavg()[0]
        return results

    def _time_programs(self, results: Results, say: Say) -> None:
        """Nanoseconds and runs of each program for each request, with all groups on."""
        syscalls = load.build_syscalls(self._directory)
        with self._running(WRITING, say) as running, statistics():
            status = self._status()
            group = status["groups"]["go_write"]
            if group["state"] == "off":
                results.unwritten = group["reason"]
            ids = self._ids()
            results.stats_ns = statistics_ns(syscalls, ids)
            for service in SERVICES:
                self._load(service, running[service][1], results, _warm(results))
                was = load.program_times(ids)
                rate = self._load(service, running[service][1], results, results.seconds)
                now = load.program_times(ids)
                results.programs[service.name] = {
                    name: per_request(was[name], now[name], rate.requests) for name in was
                }
        say("Go: time in BPF")

    def _status(self) -> dict[str, Any]:
        status = self._traced.status()
        assert status is not None
        return status

    def _ids(self) -> dict[int, str]:
        """The programs of our agent: those attached for good, and those that it holds."""
        assert self._traced.agent is not None
        ours = {program["id"] for program in self._status()["attached"]["programs"]}
        for file in Path(f"/proc/{self._traced.agent.pid}/fdinfo").iterdir():
            with contextlib.suppress(FileNotFoundError):
                held = re.findall(r"prog_id:\s*(\d+)", file.read_text())
                ours |= {int(number) for number in held}
        return {number: name for number, name in load.loaded().items() if number in ours}

    def _rate(
        self,
        service: Service,
        state: str,
        running: dict[Service, tuple[int, int]],
        results: Results,
    ) -> None:
        pid, port = running[service]
        self._load(service, port, results, _warm(results))
        before = load.cpu_seconds(pid)
        rate = self._load(service, port, results, results.seconds)
        used = load.cpu_seconds(pid) - before
        assert rate.requests, f"{service.name} answers nothing; {state}"
        spent = used / max(1, rate.requests) * 1e6
        results.rates.setdefault(service.name, {}).setdefault(state, []).append(rate)
        results.service_us.setdefault(service.name, {}).setdefault(state, []).append(spent)

    def _load(self, service: Service, port: int, results: Results, seconds: int) -> Rate:
        at_once = results.connections
        if service.program == GRPC:
            field_of_path = b"\x0a" + bytes([len(service.path)]) + service.path.encode()
            url = f"http://127.0.0.1:{port}{_METHOD}"
            return load.h2load(
                self._directory, url, field_of_path, at_once=at_once, seconds=seconds
            )
        scenario = Scenario(service.name, service.path, at_once, False, 1, tls=service.tls)
        return load.wrk(self._directory, port, scenario, seconds=seconds)

    @contextlib.contextmanager
    def _running(self, state: str, say: Say) -> Iterator[dict[Service, tuple[int, int]]]:
        """New processes, so that no connection is older than the agent: pid and port of each."""
        with ExitStack() as stack:
            if state != OFF:
                go, write = _GROUPS[state]
                groups = {"tls": "off", "go": go, "go_write": write}
                stack.callback(stop_agent, self._traced)
                start_agent(self._traced, UNSAMPLED, sink=self._sink, instrumentation=groups)
                say("Go: the agent runs")
            running = {}
            for service in SERVICES:
                process, port = self._start(service)
                stack.callback(end, process)
                running[service] = (process.pid, port)
            if state != OFF:
                for file in self._files.values():
                    self._traced.wait_followed(file, seconds=FOLLOWED_SECONDS)
            say(f"Go: {state}")
            time.sleep(1.0)  # the sender thread imports, the first status is written
            yield running

    def _start(self, service: Service) -> tuple[subprocess.Popen[bytes], int]:
        port = free_port()
        words = [*_pinned(NGINX_CPU, self._files[service.program]), _listen(port)]
        if service.tls:
            words.append(f"-certificate={self._certificate}")
        if service.calls == "grpc":
            words.append(f"-upstream=127.0.0.1:{self._grpc_upstream}")
        elif service.calls:
            words += [f"-upstream=https://127.0.0.1:{self._upstream}", f"-ca={self._certificate}"]
            words += ["-upstream-http2"] if service.calls == "https/2" else []
        process: subprocess.Popen[bytes] = subprocess.Popen(
            # exec all the way: the process is the service
            ["sh", "-c", 'echo $$ > "$0" && exec "$@"', self._procs(service), *words],
            env={**os.environ, "GOMAXPROCS": "1"},
            stderr=subprocess.DEVNULL,
        )
        wait_port(port)
        return process, port

    def _procs(self, service: Service) -> str:
        return str(self._traced.cgroup / _cgroup(service) / "cgroup.procs")

    def _copy(self, program: str, name: str) -> Path:
        return Path(shutil.copy(build(program, flags=STRIPPED), self._directory / name))


def _warm(results: Results) -> int:
    """Sends the first requests. Returns seconds: in an emulated machine the first may take one."""
    return results.seconds // 2 + results.seconds % 2


def _cgroup(service: Service) -> str:
    return f"go{SERVICES.index(service)}"


def _pinned(cpu: str, program: Path) -> list[str]:
    return ["taskset", "-c", cpu, str(program)]


def _listen(port: int) -> str:
    return f"-listen=127.0.0.1:{port}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    arguments = parser.parse_args()
    started = time.monotonic()

    def say(what: str) -> None:
        print(f"bench: {time.monotonic() - started:4.0f} s  {what}", file=sys.stderr, flush=True)

    with ExitStack() as stack:
        bench = Bench(stack.enter_context(Traced(start=False, quick=False)), stack)
        chosen = (arguments.rounds, arguments.seconds, arguments.connections)
        print(bench.measure(*chosen, say=say).json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
