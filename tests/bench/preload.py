"""What the preload for Node.js costs: Express with one call by axios, with it and without.

    python tests/bench/preload.py [--node PROGRAM] [--preload FILE] [--pairs N] [--seconds S]

Each pair is two new processes of the same program, on the same processor, which get the same load
at the same time: the scheduler changes between them every few milliseconds, and other work on the
machine slows down both. What is compared is the time of processors for each request that was
answered: of all threads, in user space and in the kernel.
No agent is needed: the preload does the same work without one.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

CHECKOUT = Path(__file__).parents[2]
sys.path[:0] = [str(CHECKOUT)]

from tests.fixtures.ports import free_port, wait_port  # noqa: E402
from tests.parents.node.apps import PRELOAD, packages  # noqa: E402

_EXPRESS = Path(__file__).with_name("express.js")
_BACK = """
daemon off;
pid {directory}/nginx.pid;
worker_processes 1;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  keepalive_requests 100000000;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 "ok"; }} }}
}}
"""
_COMPLETED = re.compile(r"(\d+) requests in")
_FAILED = re.compile(r"Non-2xx|Socket errors")
_WARM_SECONDS = 6.0  # for both


def spent(pid: int) -> float:
    """Seconds of processors that a process has had so far, all threads."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def load(port: int) -> Iterator[list[int]]:
    """Sends requests, 32 at a time. Gives how many were answered, in the end; none may fail."""
    command = ["wrk", "-t1", "-c32", "-d60s", "--timeout=60s", f"http://127.0.0.1:{port}/?id=1"]
    count: list[int] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as wrk:
        try:
            yield count
        finally:
            wrk.send_signal(signal.SIGINT)
            said, _ = wrk.communicate(timeout=60)
    found = _COMPLETED.search(said)
    if _FAILED.search(said) or not found:
        raise RuntimeError(said)
    count.append(int(found[1]))


@dataclass(frozen=True, slots=True)
class Service:
    process: subprocess.Popen[bytes]
    port: int


def measure(services: Sequence[Service], seconds: float) -> list[float]:
    """Microseconds of processors for each request, of services that are loaded at the same time."""
    before = [spent(service.process.pid) for service in services]
    with ExitStack() as stack:
        counts = [stack.enter_context(load(service.port)) for service in services]
        time.sleep(seconds)
    after = [spent(service.process.pid) for service in services]
    return [
        1e6 * (late - early) / count[0]
        for early, late, count in zip(before, after, counts, strict=True)
    ]


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(30)


def start(node: str, backend: int, preload: Path | None) -> Service:
    port = free_port()
    environment = {"PATH": os.environ["PATH"], "NODE_PATH": str(packages()), "PORT": str(port)}
    environment |= {"NODE_ENV": "production", "BACKEND": f"http://127.0.0.1:{backend}"}
    options = [f"--require={preload}"] if preload else []
    command = ["taskset", "-c", "0", node, *options, str(_EXPRESS)]
    process = subprocess.Popen(command, env=environment)
    wait_port(port)
    return Service(process, port)


def pair(node: str, backend: int, files: Sequence[Path | None], seconds: float) -> list[float]:
    """Microseconds for each request, with each of these preloads."""
    with ExitStack() as stack:
        services = []
        for file in files:
            services.append(start(node, backend, file))
            stack.callback(end, services[-1].process)
        measure(services, _WARM_SECONDS)
        return measure(services, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--node", default="node")
    parser.add_argument("--preload", type=Path, default=PRELOAD)
    parser.add_argument("--against", type=Path, help="another preload, instead of none")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=6.0)
    arguments = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as directory:
        backend, text = free_port(), Path(directory) / "nginx.conf"
        text.write_text(_BACK.format(directory=directory, port=backend))
        nginx = subprocess.Popen(["nginx", "-c", str(text), "-p", directory])
        try:
            wait_port(backend)
            for number in range(1, arguments.pairs + 1):
                # the one that is started first is at an advantage
                files = [arguments.against, arguments.preload][:: 1 if number % 2 else -1]
                found = pair(arguments.node, backend, files, arguments.seconds)
                cost = dict(zip(files, found, strict=True))
                without, loaded = cost[arguments.against], cost[arguments.preload]
                ratios.append(loaded / without)
                said = f"{without:.1f} µs, with {loaded:.1f} µs: {ratios[-1]:.3f}"
                print(f"{number}: without {said}", flush=True)
        finally:
            end(nginx)
    low, middle, high = quantiles(ratios, n=4)
    print(f"with the preload: {middle:.3f}, half of the pairs in {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
