"""A host made of files: a /proc tree, a cgroup, files to map, and probes that are only noted."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

from tests.fixtures import elffile
from throughline.host.lease import Lease
from throughline.probes import uprobes
from throughline.probes.attachments import Attachments
from throughline.probes.files import Files
from throughline.probes.processes import Processes
from throughline.probes.provider import Answer, Found
from throughline.tls.openssl import OpenSsl

LIBSSL = elffile.build(elffile.libssl())
OTHER = elffile.build({"main": elffile.PUSH})
NAMES = (
    *("tl_ssl_read", "tl_ssl_read_ex", "tl_ssl_has_read"),
    *("tl_ssl_write", "tl_ssl_write_ex", "tl_ssl_has_sent"),
    "tl_ssl_free",
)


def device_of(path: Path) -> str:
    """Device and inode as /proc/PID/maps has them."""
    status = path.stat()
    return f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x} {status.st_ino}"


class FakeProgram:
    def __init__(self, name: str) -> None:
        self.name = name


class FakeLink:
    def __init__(self, host: Host, program: str, file: tuple[int, int]) -> None:
        self._host, self.program, self.file = host, program, file

    def destroy(self) -> None:
        self._host.links.remove(self)


class FakeLease(Lease):
    def __init__(self, host: Host) -> None:
        self._host = host

    def is_wanted(self) -> bool:
        if self._host.stale is not None:
            raise self._host.stale
        return self._host.writer_waits

    def give_back(self) -> None:
        self._host.given_back += 1


class Provider(OpenSsl):
    """OpenSSL, which takes as long as a test wants, or fails."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host

    def find(self, file: int) -> Found | Answer:
        if self._host.fault is not None:
            raise self._host.fault
        self._host.now += self._host.find_takes
        return super().find(file)


class Host:
    """A /proc tree, one cgroup, a clock, and what is attached."""

    def __init__(self, directory: Path) -> None:
        self.proc = directory / "proc"
        self.cgroup = directory / "cgroup" / "a.service"
        self.directory = directory / "files"
        for path in (self.proc, self.cgroup, self.directory):
            path.mkdir(parents=True)
        (self.cgroup / "cgroup.procs").touch()
        self.now = 1000.0
        self.links: list[FakeLink] = []
        self.refusal: OSError | None = None
        self.find_takes = 0.0  # seconds
        self.fault: Exception | None = None
        self.leases = "granted"
        self.writer_waits = False
        self.stale: OSError | None = None
        self.given_back = 0
        self.programs = {name: FakeProgram(name) for name in NAMES}
        self.provider = Provider(self)
        attachments = Attachments(
            self.programs,  # type: ignore[arg-type]
            uprobes.Kind.MULTI,
            attach=self.attach,
        )
        self.files = Files([self.provider], attachments, proc=self.proc, take_lease=self.take_lease)
        self.processes = Processes(self.files, proc=self.proc, clock=lambda: self.now)

    def take_lease(self, fd: int) -> FakeLease | None:
        if self.leases == "written":
            raise BlockingIOError
        return FakeLease(self) if self.leases == "granted" else None

    def attach(self, program: FakeProgram, *, path: str, **_: Any) -> FakeLink:
        if self.refusal is not None and program.name == "tl_ssl_free":
            raise self.refusal
        status = Path(path).stat()
        link = FakeLink(self, program.name, (status.st_dev, status.st_ino))
        self.links.append(link)
        return link

    def file(self, name: str, data: bytes = LIBSSL) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def process(
        self,
        pid: int,
        *mapped: Path | str,
        root: str | Path = "/",
        exe: str = "/bin/service",
        started: int = 99,
    ) -> None:
        """Starts a process, or gives it other mappings. Names are those inside its root."""
        directory = self.proc / str(pid)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        (directory / "root").symlink_to(root)
        (directory / "exe").symlink_to(exe)
        (directory / "stat").write_text(f"{pid} (a) b) S {'1 ' * 18}{started} 2\n")
        lines = ["7f00-7f01 rw-p 00000000 00:00 0 ", "7f01-7f02 r-xp 00000000 00:00 0   [vdso]"]
        for number, name in enumerate(mapped):
            real = Path(f"{root}{name}")
            device = device_of(real) if real.exists() else f"08:01 {4711 + number}"
            lines.append(f"7f0{number}-7f1{number} r-xp 00001000 {device}      {name}")
            lines.append(f"7f2{number}-7f3{number} rw-p 00001000 {device}      {name}")
        (directory / "maps").write_text("\n".join(lines) + "\n")
        self._list()

    def end(self, pid: int) -> None:
        shutil.rmtree(self.proc / str(pid))
        self._list()

    def _list(self) -> None:
        pids = sorted(int(entry.name) for entry in self.proc.iterdir())
        (self.cgroup / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))

    def follow(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.processes.follow([str(self.cgroup)])

    def detached(self) -> None:
        """Waits until what was let go is detached: another thread does it."""
        done = threading.Event()
        self.files._attachments._detaching.submit(done.set)
        assert done.wait(5)

    @property
    def paths(self) -> list[str]:
        return [found.path for found in self.files.attached]


def container(host: Host) -> Path:
    """A root of its own, with a library that leads to ours by an absolute symlink."""
    root = host.directory / "container"
    (root / "usr/lib").mkdir(parents=True)
    return root


def maps(host: Host, pid: int, name: str, device: str) -> None:
    (host.proc / str(pid) / "maps").write_text(f"7f00-7f01 r-xp 00001000 {device}  {name}\n")


def deleted(host: Host, name: Path) -> None:
    host.process(10)
    maps = host.proc / "10" / "maps"
    maps.write_text(f"7f00-7f01 r-xp 00000000 08:01 4711  {name} (deleted)\n")


def change(path: Path, data: bytes) -> None:
    """Writes in place, and sets the times back."""
    before = path.stat()
    with path.open("r+b") as stream:
        stream.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_size == before.st_size
