"""Attach programs to places in executable files, in the way that this kernel allows.

`multi` is a uprobe_multi link (Linux 6.6; CAP_BPF and CAP_PERFMON). `perf` is a perf event, for
older kernels; those with the fix of CVE-2025-38466 want CAP_SYS_ADMIN for it.

A uprobe belongs to an inode, whichever name, mount or process leads to it. The kernel writes its
breakpoint into what a process maps without looking whether the file still says what it said when
the probe was made: whoever attaches watches the file and detaches when it is written to.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import fcntl
import os
import platform
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from throughline.bpf import libbpf, links

_KPROBE = 2  # enum bpf_prog_type
_SECTIONS = ("uprobe", "uretprobe")
_EVENT_SOURCE = Path("/sys/bus/event_source/devices/uprobe")
_EVENT = struct.Struct("<IIQ40xQQ40x")  # struct perf_event_attr, PERF_ATTR_SIZE_VER5
_IOC_ENABLE, _IOC_SET_BPF = 0x2400, 0x40042408
_OVERLAYFS = 0x794C7630  # include/uapi/linux/magic.h
# what a kernel says that does not know the way at all
_UNKNOWN = {errno.EINVAL, errno.E2BIG, errno.ENOSYS, errno.ENOENT, errno.EOPNOTSUPP}


class Kind(enum.Enum):
    MULTI = "multi"
    PERF = "perf"


class ReturnsRefusedError(OSError):
    """Return probes would kill processes that have a seccomp filter, or that is not known."""


# A process that denies itself the calls by which probes of x86 enter the kernel, as filters do that
# list what they allow, and then returns from a function with a return probe.
_DENIED = (335, 336)  # uretprobe (Linux 6.11), uprobe (6.18)
_FILTERED = """
import ctypes, os, struct, sys
fd, denied = int(sys.argv[1]), [int(number) for number in sys.argv[2:]]
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
READ_EXEC, PRIVATE = 5, 2
page = libc.mmap(None, 4096, READ_EXEC, PRIVATE, fd, 0)
assert page != ctypes.c_void_p(-1).value, "mmap: " + os.strerror(ctypes.get_errno())
function = ctypes.CFUNCTYPE(None)(page)
LOAD_NUMBER, EQUAL, RETURN = (0x20, 0, 0, 0), 0x15, 0x06  # struct seccomp_data.nr, linux/filter.h
KILL_PROCESS, ALLOW = 0x80000000, 0x7FFF0000
code = [LOAD_NUMBER]
code += [(EQUAL, len(denied) - at, 0, number) for at, number in enumerate(denied)]
code += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, KILL_PROCESS)]
program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
filters = ctypes.create_string_buffer(struct.pack("=H6xQ", len(code), ctypes.addressof(program)))
print("ready", flush=True)
sys.stdin.readline()
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, FILTER = 4, 22, 38, 2
for call in ((PR_SET_DUMPABLE, 0), (PR_SET_NO_NEW_PRIVS, 1),
             (PR_SET_SECCOMP, FILTER, ctypes.addressof(filters))):
    arguments = [ctypes.c_ulong(number) for number in (*call, 0, 0, 0)[:5]]
    assert not libc.prctl(*arguments), "prctl: " + os.strerror(ctypes.get_errno())
function()
os._exit(0)
"""
_FILTERED_SECONDS = 30.0


class Link(Protocol):
    """An attachment that ends when it is destroyed, or with this process."""

    def destroy(self) -> None: ...


def trial() -> Kind:
    """The way that works here, by attaching to a page of ours that nobody executes.

    Raises OSError with the kernel's refusal when none does.
    """
    refusals: list[OSError] = []
    for kind in Kind:
        try:
            with _constant(kind) as program, _page() as path:
                _attach(program, path, Site("", 0), pid=os.getpid(), kind=kind).destroy()
            return kind
        except OSError as error:
            refusals.append(error)
    multi, perf = refusals
    raise perf if multi.errno in _UNKNOWN else multi


def try_returns(kind: Kind) -> None:
    """Raises ReturnsRefusedError where a return probe kills a process that has a seccomp filter.

    Since Linux 6.11 a return probe of x86 enters a system call of its own (ff474a78cef5), which
    filters deny. Kernels with cf6cb56ef244 (6.14, 6.13.3, 6.12.14) do not ask the filters. A child
    of ours tries it.
    """
    if platform.machine() != "x86_64":
        return
    with _constant(kind) as program, _page() as path:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _FILTERED, path.rpartition("/")[2]]
            + [str(number) for number in _DENIED],
            executable="/proc/self/exe",  # its folder may be closed to the agent's user
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[int(path.rpartition("/")[2])],
        )
        try:
            assert child.stdout is not None
            if not select.select([child.stdout], [], [], _FILTERED_SECONDS)[0]:
                raise ReturnsRefusedError(errno.ETIMEDOUT, "it has not begun")
            if child.stdout.readline() == b"ready\n":
                site = Site("", 0, returns=True)
                link = _attach(program, path, site, pid=child.pid, kind=kind)
                try:
                    error = child.communicate(b"\n", timeout=_FILTERED_SECONDS)[1]
                finally:
                    link.destroy()
            else:
                error = child.communicate(timeout=_FILTERED_SECONDS)[1]
        except subprocess.TimeoutExpired:
            raise ReturnsRefusedError(errno.ETIMEDOUT, "it has not ended") from None
        finally:
            child.kill()
            child.communicate()
    if child.returncode < 0:
        raise ReturnsRefusedError(errno.EFAULT, f"signal {-child.returncode}")
    if child.returncode:
        last = error.decode(errors="replace").strip().rpartition("\n")[2]
        raise ReturnsRefusedError(errno.EINVAL, last)


def prepare(opened: libbpf.Object, kind: Kind) -> None:
    """Before the load: tells the kernel how the uprobe programs of an object will be attached."""
    if kind is Kind.MULTI:
        for program in opened.programs():
            if program.section.partition("/")[0] in _SECTIONS:
                program.set_expected_attach_type(links.UPROBE_MULTI)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a program is attached."""

    program: str
    offset: int  # in the file
    returns: bool = False  # when the function returns, not when it begins
    dear: bool = False  # the kernel single-steps the instruction: 23 µs instead of 0.5
    cookie: int = 0  # what the program is told


def attach(program: libbpf.Program, *, path: str | Path, site: Site, kind: Kind) -> Link:
    """Attaches to a file offset, in every process that maps the file, now or later.

    `path` may be /proc/self/fd/N, so that the file is the one that was examined. Raises OSError as
    the kernel does: an instruction that cannot be probed is ENOTSUPP (524) or EIO.
    """
    return _attach(program.fd, path, site, pid=None, kind=kind)


def identity(fd: int) -> tuple[int, ...]:
    """Equal for descriptors of one inode, as far as uprobes are concerned.

    On overlayfs a probe goes to the inode below, which has another device number in each mount
    (each container) but keeps its inode number, size and times.
    """
    status = os.fstat(fd)
    if links.filesystem(fd) == _OVERLAYFS:
        return (0, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_dev, status.st_ino)


def _attach(program_fd: int, path: str | Path, site: Site, *, pid: int | None, kind: Kind) -> Link:
    if kind is Kind.PERF:
        return _attach_perf(program_fd, path, site, pid=pid)
    return links.attach_uprobe_multi(
        *(program_fd, path, site.offset), returns=site.returns, pid=pid or 0, cookie=site.cookie
    )


def _attach_perf(program_fd: int, path: str | Path, site: Site, *, pid: int | None) -> links.Link:
    kind = int((_EVENT_SOURCE / "type").read_text())
    (bit,) = (_EVENT_SOURCE / "format" / "retprobe").read_text().strip().partition(":")[2:]
    name = ctypes.create_string_buffer(os.fsencode(path))
    config = 1 << int(bit) if site.returns else 0
    # config, then in config1 and config2 the address of the path and the offset
    event = _EVENT.pack(kind, _EVENT.size, config, ctypes.addressof(name), site.offset)
    # an event of all processes needs a CPU; it counts on each
    which = {"pid": -1, "cpu": 0} if pid is None else {"pid": pid, "cpu": -1}
    fd = links.perf_event_open(event, **which)
    link = links.Link(fd, f"{path}+{site.offset:#x}")
    try:
        if site.cookie:
            # the link keeps the event
            held, link = link, links.attach_perf(program_fd, fd, cookie=site.cookie)
            fcntl.ioctl(fd, _IOC_ENABLE, 0)
            held.destroy()
        else:
            fcntl.ioctl(fd, _IOC_SET_BPF, program_fd)
            fcntl.ioctl(fd, _IOC_ENABLE, 0)
    except OSError:
        link.destroy()
        raise
    return link


@contextmanager
def _constant(kind: Kind) -> Iterator[int]:
    expected = links.UPROBE_MULTI if kind is Kind.MULTI else 0
    fd = libbpf.load_constant(0, kind=_KPROBE, name="tl_trial", attach_type=expected)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _page() -> Iterator[str]:
    """A file with a function in memory: nop, ret."""
    fd = os.memfd_create("tl_trial", os.MFD_CLOEXEC)
    try:
        os.write(fd, b"\x90\xc3".ljust(4096, b"\xcc"))
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
