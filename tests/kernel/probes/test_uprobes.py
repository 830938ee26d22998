"""Uprobes on a real libssl in real processes: counted exactly, however the file is reached.

A program that counts stands in for those of tls.bpf.o. The processes call SSL_free(NULL), which
returns at once: its first instruction is single-stepped, its second is emulated.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fixtures import openers
from tests.fixtures.paths import SERVICES
from tests.fixtures.probed import Counter
from tests.fixtures.waiting import until
from throughline.bpf import libbpf, links
from throughline.probes import trials, uprobes
from throughline.probes.attachments import Attachments
from throughline.probes.files import Files
from throughline.probes.processes import Processes
from throughline.probes.site import Site
from throughline.probes.uprobes import Kind
from throughline.tls import openssl

pytestmark = [
    pytest.mark.timeout(120),
    # the machine's own libssl is probed, too, so that calls of any process count
    pytest.mark.alone,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]
SERVICE = SERVICES / "mapped.py"
FOUND = sorted(Path("/usr/lib").glob("*/libssl.so.[13]*")) + sorted(
    Path("/usr/lib64").glob("libssl.so.*")
)
CALLS = 23


class Process:
    def __init__(self, how: str, directory: Path, name: Path | str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SERVICE), how, str(directory), str(name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            assert self._process.stderr is not None
            error = self._process.stderr.read()
            self.end()
            pytest.skip(f"{how}: {error.strip().splitlines()[-1]}")

    def call(self, times: int) -> int:
        """Calls so many times. Returns the nanoseconds of one call."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{times}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=10)


Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def started(*arguments: Any) -> Process:
            process = Process(*arguments)
            stack.callback(process.end)
            return process

        yield started


@pytest.fixture(params=list(Kind), ids=lambda kind: str(kind.value))
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    wanted: Kind = request.param
    with ExitStack() as stack:
        if wanted is Kind.PROCESS:
            stack.enter_context(openers.running(tmp_path / "probes.socket", user=os.getuid()))
        yield possible(wanted)


def possible(wanted: Kind) -> Kind:
    """A way that this kernel has; the test is skipped where it has not."""
    try:
        with trials._loaded(wanted) as program, trials._page() as page:
            site = Site("", 0)
            uprobes.attach_fd(program, path=page, site=site, kind=wanted, pid=os.getpid()).destroy()
    except OSError as error:
        pytest.skip(f"{wanted.value}: {error}")
    return wanted


@pytest.fixture
def counter(kind: Kind) -> Iterator[Counter]:
    made = Counter(kind)
    yield made
    made.close()


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A copy of this machine's libssl, which no other process maps."""
    if not FOUND:
        pytest.skip("libssl is not installed")
    return Path(shutil.copy(FOUND[0].resolve(), tmp_path / "copy-of-ssl.so"))


class Followed:
    """The files of a list of processes, with one program in place of all, and one that counts."""

    def __init__(self, counter: Counter, kind: Kind, cgroup: Path) -> None:
        self._cgroup = cgroup
        cgroup.mkdir()
        expected = links.UPROBE_MULTI if kind is Kind.MULTI else 0
        self._silent = libbpf.load_constant(0, kind=2, name="tl_silent", attach_type=expected)
        programs = [
            SimpleNamespace(name=name, fd=counter.fd if name == "tl_ssl_free" else self._silent)
            for name in {*openssl.RETURNS, *openssl.RETURNS.values(), "tl_ssl_free"}
        ]
        named: Any = {program.name: program for program in programs}
        self.files = Files([openssl.OpenSsl()], Attachments(named, kind))
        self.processes = Processes(self.files)

    def follow(self, *processes: Process) -> None:
        (self._cgroup / "cgroup.procs").write_text("".join(f"{p.pid}\n" for p in processes))

        def is_known() -> bool:
            self.processes.follow([self._cgroup])
            return all(process.readings for process in self.processes._processes.values())

        until(is_known, seconds=10, every=0)

    def close(self) -> None:
        self.files.close()
        os.close(self._silent)


@pytest.fixture
def followed(counter: Counter, kind: Kind, tmp_path: Path) -> Iterator[Followed]:
    made = Followed(counter, kind, tmp_path / "cgroup")
    yield made
    made.close()


def free_site(library: Path) -> Site:
    return next(site for site in openssl.sites(library) if site.program == "tl_ssl_free")


def test_the_trial_finds_a_kind() -> None:
    assert trials.find_kind() in Kind


@pytest.mark.parametrize("returns", [False, True])
def test_each_call_is_counted_once(
    counter: Counter, kind: Kind, library: Path, tmp_path: Path, start: Start, returns: bool
) -> None:
    before = start("here", tmp_path, library)
    offset = free_site(library).offset
    program: Any = counter
    link = uprobes.attach(program, path=library, site=Site("", offset, returns), kind=kind)
    try:
        after = start("here", tmp_path, library)
        before.call(CALLS)
        assert counter.hits == CALLS
        after.call(CALLS)
        assert counter.hits == 2 * CALLS
    finally:
        link.destroy()
    before.call(CALLS)
    assert counter.hits == 2 * CALLS


def test_refusals_are_the_kernels(counter: Counter, kind: Kind, tmp_path: Path) -> None:
    program: Any = counter
    with pytest.raises(OSError, match="No such file"):
        uprobes.attach(program, path=tmp_path / "none", site=Site("", 0), kind=kind)
    with pytest.raises(OSError, match=r"Bad file descriptor|Invalid argument"):
        uprobes.attach(program, path=tmp_path, site=Site("", 0), kind=kind)


def test_the_chosen_site_is_cheap(
    counter: Counter,
    kind: Kind,
    library: Path,
    tmp_path: Path,
    start: Start,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A hit at the chosen instruction costs less than at the one that the symbol names."""
    process = start("here", tmp_path, library)
    site = free_site(library)
    assert not site.single_stepped
    begin = site.offset - 3  # test %rdi,%rdi
    if library.read_bytes()[begin : site.offset] != b"\x48\x85\xff":
        pytest.skip("SSL_free of this libssl begins in another way")

    def fastest() -> int:
        return min(process.call(2_000) for _ in range(8))

    free = fastest()
    prices = []
    for offset in (site.offset, begin):
        program: Any = counter
        link = uprobes.attach(program, path=library, site=Site("", offset), kind=kind)
        prices.append(fastest() - free)
        link.destroy()
    with capsys.disabled():
        print(f" [{prices[0]} ns a hit, {prices[1]} at the function's start]", end="")
    assert prices[0] < prices[1] / 2


@pytest.mark.parametrize("how", ["here", "chroot", "namespace", "container"])
def test_a_library_is_found_wherever_it_is(
    followed: Followed,
    counter: Counter,
    library: Path,
    tmp_path: Path,
    start: Start,
    how: str,
) -> None:
    root = tmp_path / "root"
    (root / "lib").mkdir(parents=True)
    if how in ("namespace", "container"):
        shutil.copy(library, tmp_path / "root.so")
    inside = Path(shutil.copy(library, root / "lib" / "anything.so"))
    process = start(how, root, inside if how == "here" else "/lib/anything.so")
    followed.follow(process)
    process.call(CALLS)
    assert counter.hits == CALLS
    # beside the libssl that Python itself is linked with
    found = {Path(a.path).name: a.processes for a in followed.files.attached}
    assert found["anything.so"] == 1
    assert followed.files.failures == {}


def test_two_overlays_of_one_file_attach_once(
    followed: Followed, counter: Counter, library: Path, tmp_path: Path, start: Start
) -> None:
    """Two containers of one image are an example: the probe is on the inode below."""
    lower = tmp_path / "lower"
    lower.mkdir()
    shutil.copy(library, lower / "anything.so")
    processes = [start("overlay", lower, "/anything.so") for _ in range(2)]
    followed.follow(*processes)
    for process in processes:
        process.call(CALLS)
    assert counter.hits == 2 * CALLS
    found = {Path(a.path).name: a.processes for a in followed.files.attached}
    assert found["anything.so"] == 2


def test_a_container_that_ends_leaves_nothing_mounted(
    followed: Followed, library: Path, tmp_path: Path, start: Start
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(library, tmp_path / "root.so")
    process = start("container", root, "/lib/anything.so")
    followed.follow(process)
    assert any(a.path == "/lib/anything.so" for a in followed.files.attached)
    process.end()
    followed.follow()
    assert not any(a.path == "/lib/anything.so" for a in followed.files.attached)


def test_after_an_upgrade_both_libraries_are_probed(
    followed: Followed, counter: Counter, library: Path, tmp_path: Path, start: Start
) -> None:
    old = start("here", tmp_path, library)
    followed.follow(old)
    fresh = Path(shutil.copy(library, tmp_path / "fresh"))
    fresh.rename(library)
    new = start("here", tmp_path, library)
    followed.follow(old, new)
    for process in (old, new):
        process.call(CALLS)
    assert counter.hits == 2 * CALLS
    assert followed.files.failures == {}


def test_a_deleted_library_is_probed_or_counted(
    followed: Followed, counter: Counter, library: Path, tmp_path: Path, start: Start
) -> None:
    old = start("here", tmp_path, library)
    fresh = Path(shutil.copy(library, tmp_path / "fresh"))
    fresh.rename(library)
    followed.follow(old)
    old.call(CALLS)
    missed = followed.files.failures["deleted"]
    assert (counter.hits, missed) in ((CALLS, 0), (0, 1))


def test_processes_that_come_and_go(
    followed: Followed, counter: Counter, library: Path, tmp_path: Path, start: Start
) -> None:
    """A process may end at any step; the others are probed."""
    lasting = start("here", tmp_path, library)
    for _ in range(5):
        ending = [start("here", tmp_path, library) for _ in range(3)]
        (tmp_path / "cgroup" / "cgroup.procs").write_text(
            "".join(f"{p.pid}\n" for p in [*ending, lasting])
        )
        ending[0].end()
        followed.processes.follow([tmp_path / "cgroup"])
        ending[1].end()
        followed.processes.follow([tmp_path / "cgroup"])
        ending[2].end()
    followed.follow(lasting)
    lasting.call(CALLS)
    assert counter.hits == CALLS
    assert followed.files.failures == {}
