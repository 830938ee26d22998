"""A traced corner of this machine: a cgroup, a bpffs, the real agent, a real OTLP receiver.

    with Traced() as traced:
        server = traced.spawn("web", ["python3", "-m", "http.server", "8000"])
        …
        spans = traced.wait_spans(23)

Everything is below names of its own and is gone afterwards: processes, cgroups, mounts, pins.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from tests.fleet import cgroups
from tests.fleet.receiver import Receiver
from tests.fleet.spans import Span
from throughline.bpf import libbpf
from throughline.host import facts

CHECKOUT = Path(__file__).parents[2]
# An emulated machine needs longer.
START_SECONDS = float(os.environ.get("THROUGHLINE_TEST_START_SECONDS", "20"))
# Ports of the tests are below those that the kernel gives to clients (32768 and higher), and each
# worker of pytest-xdist has its own: nobody else takes a port between its choice and its use.
_PORTS_EACH = 2_500
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
_next_port = random.randrange(_PORTS_EACH)


def free_port() -> int:
    """A TCP port of loopback that nothing uses, another one at each call."""
    global _next_port
    for _ in range(_PORTS_EACH):
        port = 10_000 + _PORTS_EACH * _WORKER + _next_port
        _next_port = (_next_port + 1) % _PORTS_EACH
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(errno.EADDRINUSE, "no port of the tests is free")


def wait_port(port: int, *, host: str = "127.0.0.1", seconds: float = START_SECONDS) -> None:
    """Waits until something listens, without connecting (a connection would be traced)."""
    deadline = time.monotonic() + seconds
    wanted = f":{port:04X}"
    while time.monotonic() < deadline:
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[1].endswith(wanted) and fields[3] == "0A":
                    return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on {host}:{port}")


class Traced:
    """See the module. `config` is merged over the defaults of the tests.

    The agent is `quick` (quick.py) unless a test is about its pace, or the machine is emulated.
    """

    def __init__(
        self, config: dict[str, Any] | None = None, *, start: bool = True, quick: bool = True
    ) -> None:
        self._stack = ExitStack()
        self._module = "tests.kernel.quick" if quick and START_SECONDS <= 20 else "throughline"
        self._config = config or {}
        self._start = start
        self._processes: list[subprocess.Popen[bytes]] = []
        self.agent: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Traced:
        with ExitStack() as stack:
            self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tl-")))
            cgroup2 = facts.gather().cgroup2
            assert cgroup2 is not None, "no cgroup2 on this machine"
            self.name = self.directory.name
            self.cgroup = cgroup2 / self.name
            self.cgroup.mkdir()
            stack.callback(self._remove_cgroups, self.cgroup)
            self.bpffs = self.directory / "bpffs"
            self.bpffs.mkdir()
            subprocess.run(["mount", "-t", "bpf", "bpf", str(self.bpffs)], check=True)
            stack.callback(subprocess.run, ["umount", str(self.bpffs)], check=True)
            self.receiver = stack.enter_context(Receiver(socket.create_server(("127.0.0.1", 0))))
            self._write_config()
            stack.callback(self._end)
            if self._start:
                self.start_agent()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    # -- the agent ---------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        # modules are compiled once, and not by each of hundreds of agents
        unwanted = ("OTEL_", "THROUGHLINE_", "PYTHONDONTWRITEBYTECODE")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(unwanted) or name.startswith("THROUGHLINE_TEST_")
        }
        return {
            **kept,
            "THROUGHLINE_BPFFS": str(self.bpffs),
            "THROUGHLINE_RUNTIME_DIRECTORY": str(self.directory),
            "THROUGHLINE_SPOOL_DIRECTORY": str(self.directory / "spool"),
        }

    def configure(self, **config: Any) -> None:
        """Changes the file that the agent reads at its next start or reload."""
        self._config = {**self._config, **config}
        self._write_config()

    def _write_config(self) -> None:
        config: dict[str, Any] = {
            "services": [{"match": {"cgroup": f"{self.name}/*"}}],
            "export": {"otlp": {"endpoint": self.receiver.endpoint}},
            "agent": {"drain_interval": 0.05},
        }
        config.update(self._config)
        (self.directory / "config.yaml").write_text(yaml.safe_dump(config))

    def throughline(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs one command of the agent's command line to its end."""
        return subprocess.run(
            [sys.executable, "-m", "throughline", *arguments],
            env=self.environment,
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=60,
            **options,
        )

    def start_agent(self, *, wait: bool = True, prefix: Sequence[str] = ()) -> None:
        """Starts the agent; `prefix` is a command that runs it (setpriv …)."""
        with (self.directory / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(
                [
                    *prefix,
                    sys.executable,
                    "-m",
                    self._module,
                    "run",
                    "--config",
                    str(self.directory / "config.yaml"),
                ],
                env=self.environment,
                cwd=CHECKOUT,
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait_running()

    def wait_running(self, *, seconds: float = START_SECONDS) -> dict[str, Any]:
        """Waits for a fresh status of the current agent process and returns it."""
        assert self.agent is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self.status()
            if status is not None and status["pid"] == self.agent.pid:
                return status
            if self.agent.poll() is not None:
                break
            time.sleep(0.02)
        raise TimeoutError(f"the agent does not run:\n{self.log()}")

    def stop_agent(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and waits for the end; returns the exit status."""
        assert self.agent is not None
        self.agent.send_signal(number)
        return self.agent.wait(20)

    def log(self) -> str:
        path = self.directory / "agent.log"
        return path.read_text() if path.exists() else ""

    def status(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self.directory / "status.json").read_text())
        except (OSError, ValueError):
            return None
        return found

    def counters(self) -> dict[str, int]:
        """Counters that are not 0, once the agent has read them again."""
        # the status is written after the counters are read, and the kernel may be at work still
        since = time.time() + 0.2
        deadline = time.monotonic() + START_SECONDS
        while True:
            status = self.status()
            if status is not None and status["updated_unix"] >= since:
                return {name: total for name, total in status["counters"].items() if total}
            assert time.monotonic() < deadline, f"no status is written:\n{self.log()}"
            time.sleep(0.02)

    def wait_counter(self, name: str, total: int, *, seconds: float = 10.0) -> int:
        """Waits until a counter has reached `total`; returns what it says at the end."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status()
            found = int(status["counters"].get(name, 0)) if status else 0
            if found >= total or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    def wait_spans(
        self,
        count: int,
        *,
        seconds: float = START_SECONDS,
        where: Callable[[Span], bool] = lambda _: True,
        settle: float = 0.5,
    ) -> list[Span]:
        """The spans that match, after at least `count` have come and no more come for a while."""

        self.receiver.wait(lambda spans: sum(map(where, spans)) >= count, seconds=seconds)
        time.sleep(settle)
        return [span for span in self.receiver.spans if where(span)]

    def wait_followed(
        self, program: Path, *, version: str = "", seconds: float = START_SECONDS
    ) -> None:
        """Waits until the agent has looked into a Go program that runs, and probes it."""

        def is_it(file: dict[str, Any]) -> bool:
            right: bool = file["version"].startswith(f"go{version}")
            return right and file["path"] == str(program)

        deadline = time.monotonic() + seconds
        while True:
            go = (self.status() or {}).get("go")
            if go is None or any(map(is_it, go["files"])):
                return  # the group is off, or it is followed
            assert time.monotonic() < deadline, f"{program} is not followed:\n{self.log()}"
            time.sleep(0.1)

    # -- services ----------------------------------------------------------------------------------

    def spawn(
        self, service: str, command: Sequence[str], **options: Any
    ) -> subprocess.Popen[bytes]:
        """Starts a process in the service's own cgroup; it ends with this object."""
        cgroup = self.cgroup / service
        cgroup.mkdir(exist_ok=True)
        if self.agent is not None:
            self._wait_cgroup_known()
        process: subprocess.Popen[bytes] = subprocess.Popen(
            ["sh", "-c", f'echo $$ > {cgroup}/cgroup.procs && exec "$@"', "sh", *command], **options
        )
        self._processes.append(process)
        return process

    def _wait_cgroup_known(self) -> None:
        """Waits until the agent has told the kernel of every cgroup here.

        Not much longer than it takes: an agent that has ended or traces something else never does.
        """
        wanted = {path.stat().st_ino for path in self.cgroup.rglob("*") if path.is_dir()}
        deadline = time.monotonic() + 1.3 * max(1.0, START_SECONDS / 20)
        for pin in self.bpffs.glob("abi*/tl_cgroups"):
            table = libbpf.get_pinned(pin)
            try:
                while time.monotonic() < deadline:
                    known = {struct.unpack("<Q", key)[0] for key in libbpf.keys(table, 8)}
                    if wanted <= known:
                        return
                    time.sleep(0.02)
            finally:
                os.close(table)

    @contextlib.contextmanager
    def inside(self, service: str) -> Iterator[None]:
        """Runs the calling thread's process in a service's cgroup (the whole test process)."""
        cgroup = self.cgroup / service
        known = cgroup.exists()
        cgroup.mkdir(exist_ok=True)
        if not known and self.agent is not None:
            self._wait_cgroup_known()
        home = self.cgroup.parent
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                home = self.cgroup.parent / line[4:].lstrip("/")
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (home / "cgroup.procs").write_text(str(os.getpid()))

    # -- the end -----------------------------------------------------------------------------------

    def _end(self) -> None:
        """Ends services first, so that nothing is lost at the agent's end; then the agent."""
        for process in reversed(self._processes):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._kill_cgroups()
        if self.agent is not None and self.agent.poll() is None:
            self.agent.terminate()
            try:
                self.agent.wait(20)
            except subprocess.TimeoutExpired:
                self.agent.kill()
                self.agent.wait()
        self.throughline("detach", "--config", str(self.directory / "config.yaml"))

    def _kill_cgroups(self) -> None:
        """Grandchildren (workers of a daemon) live in the cgroups still."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            pids = [
                int(pid)
                for procs in self.cgroup.glob("*/cgroup.procs")
                for pid in procs.read_text().split()
            ]
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def _remove_cgroups(self, top: Path) -> None:
        """`top` is where the corner began; a test may have gone on with another cgroup below it."""
        self._kill_cgroups()
        cgroups.remove(top)
