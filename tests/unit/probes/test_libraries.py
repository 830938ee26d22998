"""Which files are probed, and when they are let go: /proc and cgroups are files made here."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import elffile
from throughline.bpf import links
from throughline.host.lease import Lease
from throughline.probes import libraries as libraries_module
from throughline.probes import mappings, uprobes
from throughline.probes.libraries import KEEP_UNUSED_SECONDS, Libraries
from throughline.probes.probedfile import release
from throughline.text import to_json
from throughline.tls import openssl

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


class Host:
    """A /proc tree, one cgroup, a clock, and what is attached."""

    def __init__(self, directory: Path) -> None:
        self.proc = directory / "proc"
        self.cgroup = directory / "cgroup" / "a.service"
        self.files = directory / "files"
        for path in (self.proc, self.cgroup, self.files):
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
        self.libraries = Libraries(
            self.programs,  # type: ignore[arg-type]
            self.find,
            uprobes.Kind.MULTI,
            proc=self.proc,
            clock=lambda: self.now,
            attach=self.attach,
            take_lease=self.take_lease,
        )

    def find(self, fd: int) -> tuple[uprobes.Site, ...]:
        if self.fault is not None:
            raise self.fault
        self.now += self.find_takes
        return openssl.sites_of(fd)

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
        path = self.files / name
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
        self.libraries.follow([str(self.cgroup)])

    def detached(self) -> None:
        """Waits until what was let go is detached: another thread does it."""
        done = threading.Event()
        self.libraries._detaching.submit(done.set)
        assert done.wait(5)

    @property
    def paths(self) -> list[str]:
        return [found.path for found in self.libraries.attached]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.libraries.close()
    assert made.links == []


def test_a_library_is_found_by_what_it_defines(host: Host) -> None:
    path = host.file("strange-name.bin")
    host.process(10, path, host.file("libc.so", OTHER))
    host.follow()
    (found,) = host.libraries.attached
    assert (found.path, found.processes, found.refused) == (str(path), 1, "")
    assert [link.program for link in host.links] == [
        *("tl_ssl_has_read", "tl_ssl_has_sent"),
        *("tl_ssl_read_ex", "tl_ssl_write_ex", "tl_ssl_free"),
    ]
    shown = found.as_json(found.sites)
    assert (shown["programs"][0], shown["dear"]) == ("tl_ssl_read_ex", False)
    assert host.libraries.failures == {}


def test_a_dear_one_is_told(host: Host) -> None:
    host.process(10, host.file("x", elffile.build({"SSL_read": elffile.SUB, "SSL_write": b"U"})))
    host.follow()
    (found,) = host.libraries.attached
    assert found.as_json(found.sites)["dear"] is True


def test_many_processes_attach_once(host: Host) -> None:
    path = host.file("libssl.so")
    for pid in range(10, 33):
        host.process(pid, path)
    host.follow()
    assert [found.processes for found in host.libraries.attached] == [23]
    assert len(host.links) == 5


def test_two_names_of_a_file_attach_once(host: Host) -> None:
    first = host.file("libssl.so")
    second = host.files / "other.so"
    second.hardlink_to(first)
    host.process(10, first)
    host.process(11, second)
    host.follow()
    assert len(host.links) == 5
    assert [found.processes for found in host.libraries.attached] == [2]


def test_a_library_of_a_container(host: Host) -> None:
    """The same name in another root is another file."""
    inside = host.file("container/usr/lib/libssl.so")
    host.process(10, "/usr/lib/libssl.so", root=host.files / "container")
    host.follow()
    assert host.paths == ["/usr/lib/libssl.so"]
    assert {link.file[1] for link in host.links} == {inside.stat().st_ino}


def test_a_library_of_a_chroot(host: Host) -> None:
    """The kernel names the file from our root, the process's root does not lead to it."""
    inside = host.file("chroot/usr/lib/libssl.so")
    (host.files / "empty").mkdir()
    host.process(10, inside)
    (host.proc / "10" / "root").unlink()
    (host.proc / "10" / "root").symlink_to(host.files / "empty")
    host.follow()
    assert host.paths == [str(inside)]


def test_a_library_loaded_later(host: Host) -> None:
    path = host.file("libssl.so")
    host.process(10)
    host.follow()
    host.process(10, path)
    host.follow()
    assert host.paths == []
    host.follow()  # 2 s after the first look
    assert host.paths == [str(path)]


def test_a_library_loaded_much_later(host: Host) -> None:
    host.process(10)
    host.follow()
    host.follow(2)
    host.process(10, host.file("libssl.so"))
    host.follow(3)
    assert host.paths == []
    host.follow(1)
    assert len(host.paths) == 1


def test_another_program_in_the_same_process_is_looked_at_at_once(host: Host) -> None:
    host.process(10, exe="/bin/sh")
    for _ in range(5):
        host.follow()
    host.process(10, host.file("node"), exe="/usr/bin/node")
    host.follow()
    assert len(host.paths) == 1


def test_a_file_that_vanishes_meanwhile_is_read_when_it_is_there(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process may end between any two steps: that says nothing about the file."""
    path = host.file("libssl.so")
    really = mappings.open_file

    def gone(path: str) -> int:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(mappings, "open_file", gone)
    host.process(10, path)
    host.follow()
    host.end(10)
    monkeypatch.setattr(mappings, "open_file", really)
    host.process(11, path)
    host.follow()
    assert host.paths == [str(path)]


def test_who_writes_waits_until_the_probes_are_gone(host: Host) -> None:
    path = host.file("libssl.so")
    host.process(10, path)
    host.follow()
    assert len(host.paths) == 1
    host.writer_waits = True
    host.process(10)
    host.follow()
    host.detached()
    assert (host.paths, host.libraries.failures) == ([], {"written": 1})


def test_a_file_whose_file_system_is_gone_is_let_go(host: Host) -> None:
    host.process(10, host.file("libssl.so"))
    host.follow()
    host.stale = OSError(errno.ESTALE, "Stale file handle")
    host.follow()
    host.detached()
    assert (host.paths, host.links) == ([], [])
    assert host.libraries.failures == {"file_unreadable": 1}
    host.stale = None
    host.follow()
    assert len(host.paths) == 1


def test_a_lease_that_the_kernel_took_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    Lease(-1).give_back()


def test_a_probe_that_does_not_go_holds_no_file(host: Host) -> None:
    class Stuck(FakeLink):
        def destroy(self) -> None:
            raise OSError(errno.EBADF, "Bad file descriptor")

    path = host.file("libssl.so")
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file"):
        release([Stuck(host, "tl_ssl_free", (0, 0))], fd)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_a_file_that_is_being_written_is_looked_at_later(host: Host) -> None:
    host.leases = "written"
    host.process(10, host.file("libssl.so"))
    host.follow()
    assert (host.paths, host.libraries.failures) == ([], {})
    host.leases = "granted"
    host.follow()
    assert len(host.paths) == 1


def test_a_file_that_others_may_write_to_unseen_is_counted(host: Host) -> None:
    """Without CAP_LEASE."""
    host.leases = "refused"
    host.process(10, host.file("libssl.so"))
    host.follow()
    assert len(host.paths) == 1
    assert host.libraries.failures == {"unguarded": 1}


def test_what_is_not_probed_is_not_held(host: Host) -> None:
    host.process(10, host.file("other.so", OTHER))
    host.follow()
    assert host.given_back == 1


def test_only_so_many_files_are_attached_to(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service may map as many copies as it likes: our descriptors are bounded."""
    monkeypatch.setattr(libraries_module, "_MAX_FILES", 3)
    paths = [host.file(f"{number}.so") for number in range(5)]
    host.process(10, *paths)
    host.follow()
    assert len(host.libraries.attached) == 3
    assert host.libraries.failures == {"too_many_files": 2}
    for path in paths[:3]:
        path.unlink()
    host.process(10)
    host.follow(30)
    host.detached()
    host.process(11, *paths[3:])
    host.follow()
    assert host.paths == [str(path) for path in paths[3:]]


def test_files_are_read_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    really = mappings.open_file

    def noted(path: str) -> int:
        opened.append(path)
        return really(path)

    monkeypatch.setattr(mappings, "open_file", noted)
    path, other, damaged = host.file("a"), host.file("b", OTHER), host.file("c", LIBSSL[:4000])
    for pid in range(10, 20):
        host.process(pid, path, other, damaged)
    for _ in range(40):
        host.follow()
    assert len(opened) == 3
    other.write_bytes(LIBSSL)  # now it is another file
    host.process(30, other)
    host.follow()
    assert len(opened) == 4
    assert len(host.paths) == 2
    assert host.libraries.failures == {"malformed": 1}


def test_unused_for_ten_minutes_is_let_go(host: Host) -> None:
    path = host.file("libssl.so")
    host.process(10, path)
    host.follow()
    host.end(10)
    host.follow()
    host.follow(KEEP_UNUSED_SECONDS - 1)
    assert host.paths == [str(path)]
    host.process(11, path)
    host.follow()
    host.end(11)
    host.follow()
    host.follow(KEEP_UNUSED_SECONDS - 1)
    assert host.paths == [str(path)]
    host.follow()
    assert host.paths == []
    host.detached()
    assert host.links == []
    host.process(12, path)
    host.follow()
    assert len(host.links) == 5


def test_another_mount_namespace_is_let_go_with_its_last_process(host: Host) -> None:
    host.file("container/usr/lib/libssl-of-a-container.so")
    name = "/usr/lib/libssl-of-a-container.so"
    host.process(10, name, root=host.files / "container")
    host.follow()
    assert host.paths == [name]
    host.end(10)
    host.follow()
    assert host.paths == []


def test_a_removed_file_is_let_go_with_its_last_process(host: Host) -> None:
    path = host.file("libssl.so")
    host.process(10, path)
    host.follow()
    path.unlink()
    host.follow()
    assert len(host.paths) == 1
    host.end(10)
    host.follow()
    assert host.paths == []


@pytest.mark.parametrize("used", [True, False])
def test_a_file_that_is_written_over_is_let_go_at_once(host: Host, used: bool) -> None:
    path = host.file("node")
    host.process(10, path)
    host.follow()
    if not used:
        host.end(10)
        host.follow()
    path.write_bytes(elffile.build({"SSL_read": elffile.PUSH, "SSL_write": elffile.PUSH}))
    host.follow()
    assert host.paths == []
    assert host.libraries.failures == {"written": 1}
    host.detached()
    host.follow()
    # with its new content when somebody has it
    assert len(host.links) == (4 if used else 0)


def test_a_library_replaced_by_an_upgrade_stays_attached(host: Host) -> None:
    """The old processes map the deleted file, the new ones its successor."""
    path = host.file("libssl.so")
    host.process(10, path)
    host.follow()
    device = device_of(path)
    path.rename(host.files / "kept")  # so that its inode number is not used again
    host.file("libssl.so")
    for pid in (10, 12):
        host.process(pid)
        maps = host.proc / str(pid) / "maps"
        maps.write_text(f"7f00-7f01 r-xp 00000000 {device}  {path} (deleted)\n")
    host.process(11, path)
    host.follow(30)
    assert sorted(found.processes for found in host.libraries.attached) == [1, 2]
    assert host.libraries.failures == {}


def deleted(host: Host, name: Path) -> None:
    host.process(10)
    maps = host.proc / "10" / "maps"
    maps.write_text(f"7f00-7f01 r-xp 00000000 08:01 4711  {name} (deleted)\n")


def test_a_library_deleted_before_we_came_is_counted(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.open

    def refuse(path: Any, *arguments: Any, **named: Any) -> int:
        if "map_files" in str(path):
            raise PermissionError(1, "Operation not permitted")
        return really(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse)
    for path in (host.file("libssl.so"), host.file("libc.so", OTHER), Path("/none")):
        deleted(host, path)
        host.follow(30)
        assert host.libraries.failures == {"deleted": 1}
    assert host.paths == [str(host.files / "libssl.so")]  # for those who start now


def test_a_deleted_library_is_probed_where_that_is_permitted(host: Host) -> None:
    path = host.file("libssl.so")
    deleted(host, path)
    kept = host.file("kept")
    (host.proc / "10" / "map_files").mkdir()
    (host.proc / "10" / "map_files" / "7f00-7f01").symlink_to(kept)
    host.follow()
    assert {link.file[1] for link in host.links} == {kept.stat().st_ino}


def test_a_refused_attachment_is_tried_again(host: Host) -> None:
    host.process(10, host.file("libssl.so"))
    host.refusal = OSError(12, "Cannot allocate memory")
    host.follow()
    assert host.links == []
    (found,) = host.libraries.attached
    assert found.refused == "tl_ssl_free: Cannot allocate memory"
    assert host.libraries.failures == {"attach_refused": 1}
    host.refusal = None
    host.follow(29)
    assert host.links == []
    host.follow()
    assert len(host.links) == 5
    assert host.libraries.attached[0].refused == ""


def test_a_file_that_needs_a_refused_program_is_not_followed_by_half(host: Host) -> None:
    host.programs.pop("tl_ssl_free")
    host.process(10, host.file("libssl.so"))
    host.follow()
    assert host.links == []
    assert host.libraries.failures == {"no_program": 1}
    (found,) = host.libraries.attached
    assert found.refused == "this kernel refuses tl_ssl_free"
    host.follow(600)
    assert host.libraries.failures == {"no_program": 1}, "it is not tried again: nothing changes"


def test_what_is_no_file_is_passed_over(host: Host) -> None:
    fifo = host.files / "fifo"
    os.mkfifo(fifo)
    host.process(10, fifo, "/memfd:doublemapper", "/dev/zero", "/SYSV00000000", host.files)
    maps = host.proc / "10" / "maps"
    maps.write_text(f"{maps.read_text()}garbage\n\xff r-xp\n")
    host.follow()
    assert (host.paths, host.libraries.failures) == ([], {})


def test_a_file_that_cannot_be_reached_is_counted(host: Host) -> None:
    host.process(10, "/not/to/be/reached")
    host.follow()
    assert host.libraries.failures == {"unreachable": 1}


def test_processes_and_cgroups_that_end_meanwhile(host: Host) -> None:
    (host.cgroup / "cgroup.procs").write_text("0\n10\n11\n12\n")
    host.follow()
    for name in ("root", "maps", "exe"):
        host.process(10, host.file("libssl.so"))
        target = host.proc / "10" / name
        target.unlink()
        host.follow(30)
    assert host.libraries.failures["unreachable"] <= 1
    shutil.rmtree(host.cgroup)
    host.follow()
    assert [found.processes for found in host.libraries.attached] == [0]


def test_work_is_spread_over_calls(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process takes 15 ms here: two fit into a call, who waited longest comes first."""
    path = host.file("libssl.so")
    really = mappings.executed

    def slow(*arguments: Any) -> Any:
        host.now += 0.015
        return really(*arguments)

    host.follow()  # nothing is there when the agent starts
    monkeypatch.setattr(mappings, "executed", slow)
    for pid in range(10, 17):
        host.process(pid, path)
    seen = []
    for _ in range(4):
        host.follow(0.1)
        seen.append(host.libraries.attached[0].processes)
    assert seen == [2, 4, 6, 7]


def test_the_files_of_a_process_are_spread_over_calls(host: Host) -> None:
    """Each takes 0.3 s to look at here: two fit into a call. What is known stays known."""
    host.follow()
    host.find_takes = 0.3
    host.process(10, *(host.file(f"{number}.so") for number in range(5)))
    seen = []
    for _ in range(3):
        host.follow(0.1)
        seen.append([found.processes for found in host.libraries.attached])
    assert seen == [[1] * 2, [1] * 4, [1] * 5]
    host.find_takes = 1.0
    host.process(11, *(host.file(f"again/{number}.so") for number in range(2)))
    host.follow(0.1)
    host.follow(0.1)
    assert len(host.paths) == 7, "one in each call at least"


def test_all_is_found_at_the_start(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the agent says that it is ready, unless that takes seconds."""
    path = host.file("libssl.so")
    for pid in range(1000, 1200):
        host.process(pid, path)
    really = mappings.executed

    def slow(*arguments: Any) -> Any:
        host.now += 0.015
        return really(*arguments)

    monkeypatch.setattr(mappings, "executed", slow)
    host.follow()
    assert host.libraries.attached[0].processes == 134


def test_long_mappings_are_cut(host: Host) -> None:
    path = host.file("libssl.so")
    host.process(10, path)
    line = "7f00-7f01 rw-p 00000000 08:01 4711   /x\n"
    maps = host.proc / "10" / "maps"
    maps.write_text(maps.read_text() + line * (6 << 20 >> 5))
    host.follow()
    assert host.paths == [str(path)]
    assert host.libraries.failures == {"maps_too_long": 1}


def test_hostile_files_do_not_end_it(host: Host) -> None:
    sizes = struct.pack("<H", 0xFFFF)
    host.process(10, host.file("a", LIBSSL[:56] + sizes + LIBSSL[58:]), host.file("b", LIBSSL[:70]))
    host.follow()
    assert host.libraries.failures == {"malformed": 2}


def test_a_fault_of_ours_does_not_end_it(host: Host) -> None:
    host.fault = struct.error("int too large to convert")
    host.process(10, host.file("a"))
    host.follow()
    assert (host.paths, host.libraries.failures) == ([], {"failed": 1})
    assert host.given_back == 1
    host.fault = None
    host.process(11, host.file("b"))
    host.follow()
    assert len(host.paths) == 1


def container(host: Host) -> Path:
    """A root of its own, with a library that leads to ours by an absolute symlink."""
    root = host.files / "container"
    (root / "usr/lib").mkdir(parents=True)
    return root


def maps(host: Host, pid: int, name: str, device: str) -> None:
    (host.proc / str(pid) / "maps").write_text(f"7f00-7f01 r-xp 00001000 {device}  {name}\n")


@pytest.mark.parametrize("way", ["file", "directory", "dots", "magic"])
def test_a_symlink_of_a_container_does_not_lead_to_a_file_of_ours(host: Host, way: str) -> None:
    """The kernel takes our root for a symlink that is met below /proc/PID/root."""
    ours = host.file("host/libssl.so")
    root = container(host)
    inside = root / "usr/lib/libssl.so"
    name = "/usr/lib/libssl.so"
    if way == "file":
        inside.symlink_to(ours)
    elif way == "directory":
        (root / "usr/lib").rmdir()
        (root / "usr/lib").symlink_to(ours.parent)
    elif way == "dots":
        inside.symlink_to("../" * 30 + str(ours))
    else:
        inside.symlink_to(f"/proc/self/root{ours}")
        (root / "proc").symlink_to("/proc")
    host.process(10, root=root)
    # even if it said that it maps the host's own file
    maps(host, 10, name, device_of(ours))
    host.follow()
    assert host.paths == []
    assert host.links == []
    assert set(host.libraries.failures) == {"unreachable"}


def test_symlinks_inside_of_a_container_are_its_own(host: Host) -> None:
    """An absolute one means the container's root, as for its processes."""
    root = container(host)
    real = root / "usr/lib/real.so"
    real.write_bytes(LIBSSL)
    (root / "usr/lib/libssl.so").symlink_to("/usr/lib/real.so")
    host.process(10, root=root)
    maps(host, 10, "/usr/lib/libssl.so", device_of(real))
    host.follow()
    assert {link.file[1] for link in host.links} == {real.stat().st_ino}


def test_only_what_is_mapped_is_probed(host: Host) -> None:
    """Another file under the same name: it was replaced, or somebody wants us to probe it."""
    path, other = host.file("libssl.so"), host.file("other.so", OTHER)
    host.process(10)
    maps(host, 10, str(path), device_of(other))
    host.follow()
    assert (host.paths, host.libraries.failures) == ([], {"other_file": 1})
    host.process(11)
    device, inode = device_of(path).split()
    maps(host, 11, str(path), f"01:{device.partition(':')[2]} {inode}")
    host.follow()
    assert (host.paths, host.libraries.failures) == ([], {"other_file": 2})


@pytest.mark.parametrize(
    ("kind", "same_inode", "probed"),
    [
        (0x794C7630, False, True),  # overlayfs: neither needs to be the same
        (0x9123683E, True, True),  # btrfs: the device differs
        (0x9123683E, False, False),
        (0xEF53, True, False),
    ],
)
def test_file_systems_whose_devices_differ(
    host: Host, monkeypatch: pytest.MonkeyPatch, kind: int, same_inode: bool, probed: bool
) -> None:
    monkeypatch.setattr(links, "filesystem", lambda _: kind)
    path = host.file("libssl.so")
    host.process(10)
    inode = path.stat().st_ino if same_inode else 4711
    maps(host, 10, str(path), f"00:7a {inode}")
    host.follow()
    assert bool(host.paths) is probed


def test_the_kernel_is_asked_what_is_mapped_where_that_is_permitted(host: Host) -> None:
    path, other = host.file("libssl.so"), host.file("other.so")
    for pid, behind in ((10, path), (11, other)):
        host.process(pid)
        maps(host, pid, str(path), "00:7a 4711")
        (host.proc / str(pid) / "map_files").mkdir()
        (host.proc / str(pid) / "map_files" / "7f00-7f01").symlink_to(behind)
    host.follow()
    assert [found.processes for found in host.libraries.attached] == [1]
    assert host.libraries.failures == {"other_file": 1}


def test_a_process_whose_number_is_used_again_is_another(host: Host) -> None:
    """It ended and its number was given away between two looks."""
    host.process(10)
    for _ in range(5):
        host.follow()
    host.process(10, host.file("libssl.so"), started=100)
    host.follow()
    assert len(host.paths) == 1


def change(path: Path, data: bytes) -> None:
    """Writes in place, and sets the times back."""
    before = path.stat()
    with path.open("r+b") as stream:
        stream.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_size == before.st_size


def test_who_sets_the_time_back_is_seen(host: Host) -> None:
    """By ctime: the instructions under the probes are others now."""
    path = host.file("libssl.so")
    host.process(10, path)
    host.follow()
    assert len(host.paths) == 1
    change(path, b"\x7fELF" + bytes(len(LIBSSL) - 4))
    host.follow()
    host.detached()
    assert host.links == []
    assert host.libraries.failures["written"] == 1


def test_what_was_examined_is_examined_again_when_the_time_is_set_back(host: Host) -> None:
    path = host.file("a.so", OTHER.ljust(len(LIBSSL), b"\0"))
    host.process(10, path)
    host.follow()
    assert host.paths == []
    change(path, LIBSSL.ljust(path.stat().st_size, b"\0"))
    host.process(11, path)
    host.follow()
    assert len(host.paths) == 1


def test_another_mode_or_name_takes_no_probe_away(host: Host) -> None:
    path = host.file("libssl.so")
    host.process(10, path)
    host.follow()
    path.chmod(0o600)
    host.follow()
    path.rename(host.files / "renamed.so")
    host.follow()
    (host.files / "link").hardlink_to(host.files / "renamed.so")
    host.follow()
    assert len(host.links) == 5
    assert host.libraries.failures == {}


def test_a_name_that_is_no_utf8(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    name = os.fsdecode(b"lib\xff\x1b[2J.so")
    path = host.file(name)
    host.process(10)
    line = f"7f00-7f01 r-xp 00001000 {device_of(path)}  {path}\n"
    (host.proc / "10" / "maps").write_bytes(os.fsencode(line))
    host.follow()
    (found,) = host.libraries.attached
    assert found.path == str(path) and len(host.links) == 5
    assert "\x1b" not in to_json(found.as_json(found.sites))


def test_the_files_of_a_process_are_looked_at_in_turns(host: Host) -> None:
    """Spans waited for half a second where a process had many new files, or large ones."""
    host.process(10, *(host.file(f"{number}.so", OTHER) for number in range(50)))
    host.find_takes = 0.005
    longest, before = 0.0, host.now
    for _ in host.libraries.following([str(host.cgroup)]):
        longest, before = max(longest, host.now - before), host.now
    assert host.now > 1000.2 and longest < 0.006


def test_processes_are_looked_for_in_small_steps(host: Host) -> None:
    path = host.file("libssl.so")
    for pid in range(1000, 1200):
        host.process(pid, path)
    steps = sum(1 for _ in host.libraries.following([str(host.cgroup)] * 320))
    assert steps >= 320 / 32 + 200 / 32
    assert host.libraries.attached[0].processes == 200
