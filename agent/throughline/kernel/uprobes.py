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
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from throughline.kernel import libbpf, links

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
    """A file with one instruction, in memory."""
    fd = os.memfd_create("tl_trial", os.MFD_CLOEXEC)
    try:
        os.write(fd, b"\x90".ljust(4096, b"\xcc"))
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
