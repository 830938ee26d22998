"""The tests of `go_write` on a kernel that allows it: in a VM, with this machine's files.

This machine's own kernel may be locked down. The VM is emulated, so that requests are fewer than
where `test_write.py` runs by itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.fixtures.go import debian, tested
from tests.fixtures.go.build import build
from tests.fixtures.go.hops import PROTOCOLS
from tests.fixtures.go.writers import BUILDS
from tests.fixtures.paths import CHECKOUT

KERNEL = "6.12"
PREEMPTS = "newest"  # tasks in the middle of a probe: docs/decisions/0010-preemption.md
REQUESTS = 46
SECONDS = 1200
# old and new releases of Go, of each protocol one
FEW = [BUILDS[number] for number in (0, 4, 9, 11)]
# there was no guest, or it ended: emulated kernels die now and then while they patch their code
NO_GUEST, ATTEMPTS = 125, 3

pytestmark = pytest.mark.timeout(2 * (SECONDS + 300))


def in_vm(*tests: str, kernel: str = KERNEL) -> None:
    for _ in range(ATTEMPTS):
        run = _once(tests, kernel)
        print(run.stdout)
        if run.returncode != NO_GUEST:
            break
        if "is not seen in a guest" in run.stdout:
            pytest.skip(run.stdout.strip())  # the checkout is in /tmp, say
    tested.printed(run.stdout)
    assert run.returncode == 0, run.stdout[-6000:]
    assert " passed" in run.stdout
    assert " skipped" not in run.stdout


def _once(tests: Sequence[str], kernel: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PYTHONPATH": str(CHECKOUT / "agent"),
        "THROUGHLINE_TEST_START_SECONDS": "300",
        "THROUGHLINE_TEST_REQUESTS": str(REQUESTS),
        "THROUGHLINE_TEST_WRITES": "1",
        tested.PRINT: "1",
    }
    guest = [sys.executable, "-m", "tests.vms.guest", "--kernel", kernel, f"--seconds={SECONDS}"]
    given = [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
    command = ["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", f"--timeout={SECONDS}"]
    return subprocess.run(
        [*guest, *given, "--", sys.executable, *command, *tests],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=CHECKOUT,
        timeout=SECONDS + 300,
        env={**os.environ, **environment},
    )


def every_hop(builds: Sequence[tuple[str, str, tuple[str, ...], str]], *, kernel: str) -> None:
    for protocol, version, flags, modules in builds:  # a VM has no package registry
        build(f"{PROTOCOLS[protocol].client}/client")
        build(f"{PROTOCOLS[protocol].module}/server", version=version, flags=flags, modules=modules)
    ids = ["-".join(map(str, one)) for one in builds]
    test = "tests/kernel/go/test_write.py::test_every_hop_is_in_the_trace"
    in_vm(*(f"{test}[{one}]" for one in ids), kernel=kernel)


@pytest.mark.long
def test_every_protocol() -> None:
    every_hop(FEW, kernel=KERNEL)


def test_a_kernel_that_preempts() -> None:
    every_hop(FEW[-1:], kernel=PREEMPTS)


@pytest.mark.long
def test_peers() -> None:
    build("chain/server", version="1.22", flags=("-ldflags=-s -w",))
    build("grpc/server", version="1.22", modules="1.64")
    build("grpc/client")
    in_vm("tests/kernel/go/test_write_peers.py")


@pytest.mark.long
def test_programs_of_debian() -> None:
    debian.unpacked()
    build("chain/server")
    build("chain/client")
    in_vm("tests/kernel/go/test_write_debian.py")
