"""Links that libbpf 1.1 cannot make, by system calls: tcx, uprobe_multi, and perf with a cookie.

A link is an open descriptor. Closing it detaches the program unless the link is pinned.
Layouts: union bpf_attr.link_create and struct bpf_link_info in include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from functools import cache
from pathlib import Path

from throughline.bpf.prototypes import check, failure, info, library

# enum bpf_attach_type
PERF_EVENT, TCX_INGRESS, TCX_EGRESS, UPROBE_MULTI = 41, 46, 47, 48
# flags of attach_tcx: the place in the chain of an interface; 0 is the end of the chain
BEFORE, AFTER, RELATIVE_IS_ID, RELATIVE_IS_LINK = 1 << 3, 1 << 4, 1 << 5, 1 << 13

_LINK_CREATE = 28  # enum bpf_cmd
_BPF = {"x86_64": 321, "aarch64": 280}  # the number of bpf()
_UPROBE_RETURN = 1  # BPF_F_UPROBE_MULTI_RETURN


class Link:
    """An attachment of a program. `destroy` closes it; that detaches it unless it is pinned."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd: int | None = fd
        self.name = name

    @classmethod
    def open(cls, path: Path) -> Link:
        """Opens a pinned link of any type."""
        return cls(
            check(library().bpf_obj_get(os.fsencode(path)), f"bpf_obj_get {path}"), path.name
        )

    @property
    def fd(self) -> int:
        if self._fd is None:
            raise OSError(errno.EBADF, f"link {self.name} is closed")
        return self._fd

    def pin(self, path: Path) -> None:
        check(library().bpf_obj_pin(self.fd, os.fsencode(path)), f"bpf_obj_pin {path}")

    def update(self, program_fd: int) -> None:
        """Replaces the program of a tcx link; ENOLINK when its interface has gone."""
        check(library().bpf_link_update(self.fd, program_fd, None), f"bpf_link_update {self.name}")

    def destroy(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def attach_tcx(
    program_fd: int, ifindex: int, *, egress: bool = True, flags: int = 0, relative: int = 0
) -> Link:
    """Adds a TC program to an interface's chain (Linux 6.6).

    BEFORE and AFTER refer to `relative`: the descriptor of a program; its id with RELATIVE_IS_ID; a
    link instead with RELATIVE_IS_LINK; or 0, the whole chain. Raises EINVAL when the kernel has no
    tcx, ENODEV or EINVAL when there is no such interface, EEXIST when the program is in the chain.
    """
    kind = TCX_EGRESS if egress else TCX_INGRESS
    attribute = struct.pack("=IIIIIIQ", program_fd, ifindex, kind, flags, relative, 0, 0)
    return Link(_create(attribute, f"tcx link on interface {ifindex}"), f"tcx@{ifindex}")


def tcx_interface(link_fd: int) -> int:
    """The interface index of a tcx link; 0 when the interface has gone or the link is detached."""
    # struct bpf_link_info: type, id, prog_id, padding, then tcx.ifindex
    return int(info(link_fd)[4])


def attach_uprobe_multi(
    program_fd: int,
    path: str | Path,
    offset: int,
    *,
    returns: bool = False,
    pid: int = 0,
    cookie: int = 0,
) -> Link:
    """Attaches to one file offset (Linux 6.6), in every process that maps it, or only in `pid`.

    The program must be loaded with UPROBE_MULTI as its expected attach type. With `returns` it runs
    when the function that starts at `offset` returns. bpf_get_attach_cookie() gives it `cookie`.
    Raises EINVAL when the kernel has no such links, EBADF when `path` is no regular file, ESRCH
    when there is no such process.
    """
    name = ctypes.create_string_buffer(os.fsencode(path))
    offsets, cookies = ctypes.c_uint64(offset), ctypes.c_uint64(cookie)
    attribute = struct.pack(
        "=IIIIQQQQIII4x",
        *(program_fd, 0, UPROBE_MULTI, 0),
        *(ctypes.addressof(name), ctypes.addressof(offsets), 0, ctypes.addressof(cookies)),
        *(1, _UPROBE_RETURN if returns else 0, pid),
    )
    return Link(_create(attribute, f"uprobe_multi link on {path}"), f"{path}+{offset:#x}")


def attach_perf(program_fd: int, event_fd: int, *, cookie: int) -> Link:
    """Attaches to a perf event with a cookie (Linux 5.15), until the link is closed."""
    attribute = struct.pack("=IIIIQ", program_fd, event_fd, PERF_EVENT, 0, cookie)
    return Link(_create(attribute, "perf_event link"), f"perf event {event_fd}")


def filesystem(fd: int) -> int:
    """The type of the file system that holds a file: f_type of statfs(2)."""
    data = (ctypes.c_long * 32)()
    _check(_libc().fstatfs(fd, ctypes.byref(data)), "fstatfs")
    return int(data[0])


def _create(attribute: bytes, call: str) -> int:
    data = ctypes.create_string_buffer(attribute, len(attribute))
    return _check(_libc().syscall(_bpf(), _LINK_CREATE, data, len(attribute)), call)


def _check(result: int, call: str) -> int:
    """Returns the result of a call; raises the error in errno when it is -1."""
    if result < 0:
        raise failure(call)
    return int(result)


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _bpf() -> int:
    machine = platform.machine()
    if machine not in _BPF:
        raise OSError(errno.ENOSYS, f"the number of bpf() on {machine} is not known")
    return _BPF[machine]
