"""What an operator does to a traced corner: commands, reloads, a look at the log."""

from __future__ import annotations

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

    objects: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        """As the corner's; objects from elsewhere than build/bpf may be named."""
        named = self.objects or os.environ.get("THROUGHLINE_BPF_OBJECTS")
        return super().environment | ({"THROUGHLINE_BPF_OBJECTS": str(named)} if named else {})

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
