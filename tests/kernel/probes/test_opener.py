"""The process that opens uprobes, and an agent that may not, each as its unit runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import openers, privileges
from tests.fixtures.paths import CHECKOUT
from tests.fixtures.probed import Counter
from throughline.bpf import perfevent
from throughline.probes import arch, uprobes
from throughline.probes.site import Site
from throughline.probes.uprobes import Kind

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="perf events of uprobes need root")

CALLS = 23
# What an agent does: as a user without CAP_SYS_ADMIN it attaches a program, and calls the function.
AGENT = """
import ctypes, sys
from pathlib import Path
from tests.fixtures.probed import Counter
from throughline.bpf import perfevent
from throughline.probes import uprobes
from throughline.probes.site import Site
path, calls = sys.argv[1], int(sys.argv[2])
try:
    perfevent.open_uprobe(path, 0, returns=False, pid=None)
    print("own event", flush=True)
except PermissionError:
    print("refused", flush=True)
counter = Counter(uprobes.Kind.PROCESS)
site = Site("", 0, cookie=7)
link = uprobes.attach_fd(counter.fd, path=path, site=site, kind=uprobes.Kind.PROCESS)
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
with Path(path).open("rb") as file:
    page = libc.mmap(None, 4096, 5, 2, file.fileno(), 0)  # PROT_READ | PROT_EXEC, MAP_PRIVATE
function = ctypes.CFUNCTYPE(None)(page)
for _ in range(calls):
    function()
print(counter.hits, flush=True)
sys.stdin.readline()  # the process has gone meanwhile
for _ in range(calls):
    function()
print(counter.hits, flush=True)
link.destroy()
function()
print(counter.hits, flush=True)
"""


@pytest.fixture
def function(tmp_path: Path) -> Iterator[Path]:
    """A file with one function, which everybody can read and nobody else maps."""
    folder = Path("/dev/shm") / f"tl-{os.getpid()}"
    folder.mkdir(mode=0o755)
    path = folder / "function"
    path.write_bytes(arch.here().FUNCTION.ljust(4096, b"\xcc"))
    try:
        os.close(perfevent.open_uprobe(path, 0, returns=False, pid=None))
        yield path
    except OSError as error:
        pytest.skip(f"this kernel refuses uprobes by perf events: {error}")
    finally:
        path.unlink()
        folder.rmdir()


def test_an_agent_without_sys_admin_attaches(function: Path) -> None:
    socket = function.with_name("socket")
    with openers.running(socket, user=privileges.NOBODY) as process:
        agent = subprocess.Popen(
            [
                *privileges.only("bpf", "perfmon"),
                *(sys.executable, "-c", AGENT, str(function), str(CALLS)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'agent'}"},
            text=True,
        )
        assert agent.stdin is not None and agent.stdout is not None
        own, first = agent.stdout.readline(), agent.stdout.readline()
        assert first == f"{CALLS}\n"
        status = Path(f"/proc/{process.pid}/status").read_text()
    socket.unlink()
    out, _ = agent.communicate("\n", timeout=20)
    assert out == f"{2 * CALLS}\n{2 * CALLS}\n"
    assert f"CapEff:\t{1 << 21:016x}\n" in status
    if own == "own event\n":
        pytest.skip("all passed, but this kernel gives the agent uprobes anyway")
    assert own == "refused\n"


def test_the_agent_asks_the_next_process(function: Path) -> None:
    """One after the other, as systemd starts them; none of them keeps a descriptor."""
    counter = Counter(Kind.PROCESS)
    socket = function.with_name("socket")
    links: list[uprobes.Link] = []
    for _ in range(2):
        with openers.running(socket, user=os.getuid()) as process:
            held: set[int] = set()
            for number in range(CALLS):
                site = Site("", 0, returns=bool(number % 2))
                found = uprobes.attach_fd(counter.fd, path=function, site=site, kind=Kind.PROCESS)
                links.append(found)
                held.add(len(list(Path(f"/proc/{process.pid}/fd").iterdir())))
            # while it answers it has at most the connection, the file and the event besides
            assert max(held) <= min(held) + 3
        socket.unlink()
        with pytest.raises(OSError, match="throughline-probes"):
            uprobes.attach_fd(counter.fd, path=function, site=Site("", 0), kind=Kind.PROCESS)
    for link in links:
        link.destroy()
    counter.close()
