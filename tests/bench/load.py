"""Load and its targets: wrk, h2load, nginx, and a loop of system calls."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from tests.fixtures.certificate import make_certificate

NGINX_CPU, WRK_CPU = "0", "1"

_NGINX = """
daemon off;
user root;
pid {directory}/{name}.pid;
worker_processes 1;
worker_cpu_affinity {mask};
events {{ worker_connections 2048; }}
http {{
  access_log off;
  keepalive_requests 100000000;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  client_max_body_size 100m;
  {servers}
}}
"""

_FRONT = """
  upstream kept {{ server 127.0.0.1:{back}; keepalive 128; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{front} backlog=2048;
    listen 127.0.0.1:{secure} ssl backlog=2048;
    ssl_certificate {certificate};
    ssl_certificate_key {certificate};
    location /static {{ return 200 "{body}"; }}
    location /16k {{ alias {large}; }}
    location /proxy {{
      proxy_pass http://kept/static; proxy_http_version 1.1; proxy_set_header Connection "";
    }}
    location /fresh {{ proxy_pass http://127.0.0.1:{back}/seen; }}
  }}
"""

# /v1/ takes what the agent exports; it costs next to nothing, which a receiver in Python would not.
_BACK = """
  server {{
    listen 127.0.0.1:{back} backlog=2048;
    location /static {{ return 200 "{body}"; }}
    location /seen {{ return 200 "$http_traceparent"; }}
    location /v1/ {{ return 200 ""; }}
  }}
"""

# What services of Go call, by HTTPS with HTTP/1.1 or HTTP/2, and where their agent exports to.
_UPSTREAM = """
  server {{
    listen 127.0.0.1:{back} backlog=2048;
    location /v1/ {{ return 200 ""; }}
  }}
  server {{
    listen 127.0.0.1:{secure} ssl http2 backlog=2048;
    ssl_certificate {certificate};
    ssl_certificate_key {certificate};
    location / {{ return 200 '{{"id":"7","kind":"answer","protocol":"","traceparents":[]}}'; }}
  }}
"""
_SERVERS = {"front": _FRONT, "back": _BACK, "upstream": _UPSTREAM}

_WRK = """
function done(summary, latency, requests)
  local e = summary.errors
  print(string.format(
    '{"requests":%d,"microseconds":%d,"p50":%d,"p99":%d,"errors":%d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""

_SYSCALLS = """
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
	struct timespec from, to;
	const long calls = 500000;

	clock_gettime(CLOCK_MONOTONIC, &from);
	for (long i = 0; i < calls; i++)
		syscall(SYS_getppid);
	clock_gettime(CLOCK_MONOTONIC, &to);
	printf("%f", ((to.tv_sec - from.tv_sec) * 1e9 + (to.tv_nsec - from.tv_nsec)) / calls);
	return 0;
}
"""


@dataclass(frozen=True, slots=True)
class Rate:
    """The result of wrk or h2load in one run; latencies in milliseconds."""

    requests: int
    per_second: float
    p50: float
    p99: float
    errors: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of requests to a traced service."""

    name: str
    path: str
    connections: int
    close: bool  # a new connection for each request
    hops: int  # sides of a request that the agent sees: server, and client where nginx calls on
    service: str = "nginx"  # or "python": a threaded http.server, which works far more
    tls: bool = False


SCENARIOS = (
    Scenario("static, keep-alive", "/static", 64, False, 1),
    Scenario("static, new connections", "/static", 64, True, 1),
    Scenario("proxy, keep-alive", "/proxy", 64, False, 2),
    Scenario("proxy, new connections", "/proxy", 64, True, 2),
    Scenario("Python http.server, keep-alive", "/200/7", 16, False, 1, "python"),
)
SECURE = (
    Scenario("TLS, 200 bytes, keep-alive", "/static", 64, False, 1, tls=True),
    Scenario("TLS, 16 KB, keep-alive", "/16k", 64, False, 1, tls=True),
)


def nginx_config(directory: Path, *, name: str, back: int, front: int = 0, secure: int = 0) -> Path:
    """Writes the configuration of the traced nginx (`front`) or of an untraced one (`back`,
    `upstream`)."""
    certificate, large = directory / "both.pem", directory / "large"
    if name != "back" and not certificate.exists():
        make_certificate(directory)
        large.write_bytes(b"x" * 16_000)
    template = _SERVERS[name]
    path = directory / f"{name}.conf"
    path.write_text(
        _NGINX.format(
            directory=directory,
            name=name,
            mask="01" if name == "front" else "10",
            servers=template.format(
                front=front,
                back=back,
                secure=secure,
                certificate=certificate,
                body="x" * 200,
                large=large,
            ),
        )
    )
    return path


def nginx_command(config: Path) -> list[str]:
    return ["nginx", "-c", str(config), "-e", str(config.with_suffix(".log"))]


def wrk(
    directory: Path, port: int, scenario: Scenario, *, seconds: float, delay_ms: int = 0
) -> Rate:
    """Runs wrk: as fast as one thread can, or each connection once in `delay_ms`."""
    script = directory / "wrk.lua"
    # a delay function, even one that says 0, makes wrk wait for its timer
    delay = f"function delay() return {delay_ms} end\n" if delay_ms else ""
    script.write_text(delay + _WRK)
    command = ["taskset", "-c", WRK_CPU, "wrk", "-t", "1", "-c", str(scenario.connections)]
    command += ["-d", f"{seconds:g}s", "--timeout", "5s", "-s", str(script)]
    if scenario.close:
        command += ["-H", "Connection: close"]
    command += [f"http{'s' if scenario.tls else ''}://127.0.0.1:{port}{scenario.path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=True)
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return Rate(
        requests=said["requests"],
        per_second=said["requests"] / (said["microseconds"] / 1e6),
        p50=said["p50"] / 1e3,
        p99=said["p99"] / 1e3,
        errors=said["errors"],
    )


def h2load(directory: Path, url: str, message: bytes, *, at_once: int, seconds: float) -> Rate:
    """Calls a method of gRPC as fast as one thread can, eight at a time on each connection."""
    body, log = directory / "message", directory / "h2load.log"
    body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    log.unlink(missing_ok=True)
    command = ["taskset", "-c", WRK_CPU, "h2load", "-t", "1", "-m", "8"]
    command += ["-c", str(at_once // 8)]
    command += ["-D", f"{seconds * 1000:.0f}ms", "-d", str(body), f"--log-file={log}"]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=True)
    rows = [line.split("\t") for line in log.read_text().splitlines()]
    failed = re.search(r"(\d+) failed, (\d+) errored, \d+ timeout$", done.stdout, re.MULTILINE)
    # a call that fails has no message, only trailers
    answered = re.search(r"\((\d+)\) data$", done.stdout, re.MULTILINE)
    assert failed and answered and int(answered[1]) >= 5 * len(rows), done.stdout
    latencies = [int(row[2]) / 1000 for row in rows]
    cuts = quantiles(latencies, n=100) if len(rows) > 1 else [0.0] * 99
    return Rate(
        requests=len(rows),
        per_second=len(rows) / seconds,
        p50=cuts[49],
        p99=cuts[98],
        errors=int(failed[1]) + int(failed[2]),
    )


def build_syscalls(directory: Path) -> Path:
    """Compiles the loop of null system calls; it prints nanoseconds per call."""
    source = directory / "syscalls.c"
    source.write_text(_SYSCALLS)
    program = directory / "syscalls"
    subprocess.run(["cc", "-O2", "-o", str(program), str(source)], check=True)
    return program


def null_syscall(program: Path) -> float:
    """Nanoseconds."""
    done = subprocess.run(
        ["taskset", "-c", WRK_CPU, str(program)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return float(done.stdout)


# --- what the kernel says about processes and programs ------------------------------------------


def cpu_seconds(pid: int) -> float:
    """CPU time of a process with all threads that still run, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def ended_cpu_seconds(pid: int) -> float:
    """The same with threads that have ended, to 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> dict[str, float]:
    """VmRSS and VmHWM in MiB."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            found[name] = int(value.split()[0]) / 1024
    return found


def children(pid: int) -> list[int]:
    """Direct children (nginx's workers)."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def agents() -> int:
    """How many agents have their programs on this kernel."""
    return sum(program.get("name") == "tl_tick" for program in _shown())


def loaded() -> dict[int, str]:
    """Our programs on this kernel by id: of one agent, since `agents` says when there are more."""
    return {
        program["id"]: program["name"]
        for program in _shown()
        if program.get("name", "").startswith("tl_")
    }


def _shown() -> list[dict[str, Any]]:
    """Every program of this kernel, as bpftool shows it."""
    done = subprocess.run(
        ["bpftool", "-j", "prog", "show"], capture_output=True, text=True, check=True
    )
    shown: list[dict[str, Any]] = json.loads(done.stdout)
    return shown


@dataclass(frozen=True, slots=True)
class ProgramTime:
    """Totals of one BPF program; zero while kernel.bpf_stats_enabled is 0."""

    nanoseconds: int
    runs: int


def program_times(ids: dict[int, str]) -> dict[str, ProgramTime]:
    """Totals by name of the programs with these ids, of those that are still there."""
    totals = dict.fromkeys(ids.values(), ProgramTime(0, 0))
    for program in _shown():
        if name := ids.get(program["id"]):
            before = totals[name]
            totals[name] = ProgramTime(
                before.nanoseconds + program.get("run_time_ns", 0),
                before.runs + program.get("run_cnt", 0),
            )
    return totals
