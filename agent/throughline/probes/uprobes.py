"""Uprobes: one program attached to one place in an executable file.

There are three ways. `multi` is a uprobe_multi link (Linux 6.6), which takes CAP_BPF and
CAP_PERFMON. `perf` is a perf event; kernels with the fix of CVE-2025-38466 want CAP_SYS_ADMIN for
it. `process` is a perf event that the process throughline-probes has opened, which has that
capability (probes/opener.py). probes/trials.py finds the way that works here.

A uprobe belongs to an inode, whatever name, mount or process leads to it. The kernel writes its
breakpoint into the pages that a process maps, and does not check that the file still has the
instruction for which the probe was made. So the caller watches the file, and detaches before it
changes.
"""

from __future__ import annotations

import enum
import fcntl
import os
from pathlib import Path
from typing import Protocol

from throughline.bpf import libbpf, links, perfevent
from throughline.probes.opening import Opening
from throughline.probes.site import Site

_SECTIONS = ("uprobe", "uretprobe")
_IOC_ENABLE, _IOC_SET_BPF = 0x2400, 0x40042408
_OVERLAYFS = 0x794C7630  # include/uapi/linux/magic.h
_PROCESS = Opening()


class Kind(enum.Enum):
    """The way in which uprobes are attached: those before another one are better."""

    MULTI = "multi"
    PERF = "perf"
    PROCESS = "process"


class Link(Protocol):
    """An attachment. It ends when it is destroyed, or with this process."""

    def destroy(self) -> None: ...


def expect() -> None:
    """Some seconds before the first trial: what may open uprobes for the agent starts meanwhile."""
    _PROCESS.wake()


def prepare(opened: libbpf.Object, kind: Kind) -> None:
    """Before an object is loaded: tells the kernel how its uprobe programs will be attached."""
    if kind is Kind.MULTI:
        for program in opened.programs():
            if program.section.partition("/")[0] in _SECTIONS:
                program.set_expected_attach_type(links.UPROBE_MULTI)


def attach(program: libbpf.Program, *, path: str | Path, site: Site, kind: Kind) -> Link:
    """Attaches to a place in a file, in every process that maps the file now or later.

    `path` may be /proc/self/fd/N, so that the file is the one that was examined. Raises OSError as
    the kernel does: ENOTSUPP (524) or EIO for an instruction that cannot be probed.
    """
    return attach_fd(program.fd, path=path, site=site, kind=kind)


def attach_fd(
    program_fd: int, *, path: str | Path, site: Site, kind: Kind, pid: int | None = None
) -> Link:
    """The same for the descriptor of a program; with `pid` in that process only."""
    if kind is not Kind.MULTI:
        opened = perfevent.open_uprobe if kind is Kind.PERF else _PROCESS.open_uprobe
        event = opened(path, site.offset, returns=site.returns, pid=pid)
        return _attach_perf(program_fd, event, site, name=f"{path}+{site.offset:#x}")
    return links.attach_uprobe_multi(
        *(program_fd, path, site.offset), returns=site.returns, pid=pid or 0, cookie=site.cookie
    )


def identity(fd: int) -> tuple[int, ...]:
    """Equal for descriptors of files that uprobes take for one inode.

    On overlayfs a probe goes to the inode of the layer below. That file has another device number
    in each mount (so in each container), but the same inode number, size and times.
    """
    status = os.fstat(fd)
    if links.filesystem(fd) == _OVERLAYFS:
        return (0, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_dev, status.st_ino)


def _attach_perf(program_fd: int, fd: int, site: Site, *, name: str) -> links.Link:
    """Attaches to an event that is open, and takes it over."""
    link = links.Link(fd, name)
    try:
        if site.cookie:
            # The BPF link keeps the perf event, so the event's descriptor can be closed.
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
