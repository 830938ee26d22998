"""What an operator does to a traced corner: commands, reloads, a look at the log."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.kernel.traced import CHECKOUT, Traced


class Operated(Traced):
    """See the module."""

    objects: Path | None = None  # instead of those in build/bpf
    launcher: Path | None = None  # what a reload executes
    runtime: Path | None = None  # instead of the corner's directory

    @property
    def environment(self) -> dict[str, str]:
        """As the corner's; objects from elsewhere than build/bpf may be named."""
        named = self.objects or os.environ.get("THROUGHLINE_BPF_OBJECTS")
        found = super().environment
        if named:
            found["THROUGHLINE_BPF_OBJECTS"] = str(named)
        if self.launcher:
            found["THROUGHLINE_LAUNCHER"] = str(self.launcher)
        if self.runtime:
            found["THROUGHLINE_RUNTIME_DIRECTORY"] = str(self.runtime)
        return found

    def status(self) -> dict[str, Any] | None:
        """As the corner's, wherever the runtime directory is."""
        if self.runtime is None:
            return super().status()
        try:
            found: dict[str, Any] = json.loads((self.runtime / "status.json").read_text())
        except (OSError, ValueError):
            return None
        return found

    def wait_export(self, name: str, value: int, *, seconds: float = 20.0) -> dict[str, Any]:
        """Waits until a number of the export status has a value; returns the export status."""
        deadline = time.monotonic() + seconds
        while True:
            found: dict[str, Any] = (self.status() or {}).get("export", {})
            if found.get(name) == value or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    def command(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """One command of the agent with this corner's configuration; `prefix` runs it."""
        file = ("--config", str(self.directory / "config.yaml"))
        return subprocess.run(
            [*prefix, sys.executable, "-m", "throughline", *arguments, *file],
            env={**self.environment, **(environment or {})},
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=60,
            **options,
        )

    def end_services(self) -> None:
        """Ends all services and waits for the last of their processes."""
        self._kill_cgroups()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            if not any(procs.read_text() for procs in self.cgroup.rglob("cgroup.procs")):
                return
            for procs in self.cgroup.rglob("cgroup.procs"):
                for pid in procs.read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.02)

    def reload(self) -> dict[str, Any]:
        """SIGHUP; returns the first status of the agent after it."""
        assert self.agent is not None
        before = self.status()
        self.agent.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            status = self.status()
            if status and before and status["started_unix"] != before["started_unix"]:
                return status
            assert self.agent.poll() is None, self.log()
            time.sleep(0.02)
        raise TimeoutError(f"not reloaded:\n{self.log()}")

    def wait_log(self, pattern: str, *, seconds: float = 15.0) -> str:
        """Waits for a line of the agent's log."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            match = re.search(pattern, self.log())
            if match:
                return match[0]
            time.sleep(0.05)
        raise TimeoutError(f"{pattern!r} is not in the log:\n{self.log()}")

    def pins(self) -> list[str]:
        """What is in the bpffs, without the two files that the kernel itself puts there."""
        found = {str(path.relative_to(self.bpffs)) for path in self.bpffs.rglob("*")}
        return sorted(found - {"maps.debug", "progs.debug"})
