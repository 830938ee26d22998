"""The measurement of Go services in a VM whose kernel is not locked down, so that go_write is on.

The VM is emulated, without KVM: only ratios within it say something, and what the programs do.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.bench import golang
from tests.fixtures.paths import CHECKOUT

KERNEL = "6.12"
ROUNDS, SECONDS = 3, 3
CONNECTIONS = 8  # sixty-four handshakes take seconds there
LONGEST_SECONDS = 1500


def measure(*, rounds: int = ROUNDS, seconds: int = SECONDS) -> golang.Results:
    """Raises CalledProcessError when there is no VM, or the measurement fails there."""
    golang.build_services()
    environment = {
        "PYTHONPATH": str(CHECKOUT / "agent"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "THROUGHLINE_TEST_START_SECONDS": "300",
    }
    cache = os.environ.get("THROUGHLINE_CACHE")
    if cache:
        environment["THROUGHLINE_CACHE"] = cache
    command = [
        *(sys.executable, "-m", "tests.vms.guest", "--kernel", KERNEL),
        f"--seconds={LONGEST_SECONDS}",
        *(word for name, value in environment.items() for word in ("--env", f"{name}={value}")),
        *("--", sys.executable, "-m", "tests.bench.golang"),
        *(f"--rounds={rounds}", f"--seconds={seconds}", f"--connections={CONNECTIONS}"),
    ]
    last = ""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
        env={**os.environ, **environment},
    ) as guest:
        assert guest.stdout is not None
        try:
            for line in guest.stdout:  # what it says, and at the end the results
                last = line
                if not line.startswith("{"):
                    print(line, end="", file=sys.stderr, flush=True)
        except BaseException:
            guest.terminate()
            raise
    if guest.returncode:
        raise subprocess.CalledProcessError(guest.returncode, command)
    return golang.Results.read(last)
