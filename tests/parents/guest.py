"""The bench of parents on another kernel: `make bench-parents KERNEL=6.12 ONLY=nginx-keepalive`.

The guest is emulated, and has neither a network nor /tmp: what the applications need is installed
before, and nothing is written to docs/. Only the shares say something, not the times.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tests.fixtures.paths import CHECKOUT

LONGEST_SECONDS = 3000
# one that needs no other packages, one whose header is lost where FIONREAD is wrong, one by a unit
FEW = "flask-sync,nginx-keepalive,fastapi-asyncio"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", required=True, help="5.10, 6.1, 6.12, newest")
    parser.add_argument("--only", default=FEW)
    parser.add_argument("--concurrent", default="8")
    arguments = parser.parse_args()
    bench = (sys.executable, "-m", "tests.parents.run", "--only", arguments.only)
    installed = subprocess.run([*bench, "--install"], cwd=CHECKOUT, check=False)
    if installed.returncode:
        return installed.returncode
    variables = {"THROUGHLINE_TEST_START_SECONDS": "300", "PYTHONPATH": str(CHECKOUT / "agent")}
    if "THROUGHLINE_CACHE" in os.environ:
        variables["THROUGHLINE_CACHE"] = os.environ["THROUGHLINE_CACHE"]
    command = [
        *(sys.executable, "-m", "tests.vms.guest", "--kernel", arguments.kernel),
        f"--seconds={LONGEST_SECONDS}",
        *(word for name, value in variables.items() for word in ("--env", f"{name}={value}")),
        *("--", *bench, "--concurrent", arguments.concurrent),
    ]
    return subprocess.run(command, cwd=CHECKOUT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
