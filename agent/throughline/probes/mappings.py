"""The files that a process maps as code: read from /proc/PID/maps, found, and opened."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from throughline.bpf import links
from throughline.host import openat

_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_OVERLAYFS = 0x794C7630  # f_type, include/uapi/linux/magic.h
_SUBVOLUMES = {0x9123683E, 0xCA451A4E}  # btrfs, bcachefs
_MAX_MAPS_BYTES = 4 << 20
_EXECUTABLE = re.compile(
    rb"^([0-9a-f]+-[0-9a-f]+) ..x. ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+ [1-9][0-9]*) +(/.*)$", re.M
)
_DELETED = " (deleted)"
# Memory with a name that is no file's.
_NO_FILES = ("/memfd:", "/dev/", "/SYSV", "/anon_hugepage")


class OtherFileError(OSError):
    """The file that has the name of a mapping is not the file that is mapped."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """An executable mapping of a file."""

    area: str  # the addresses, which are the name of its entry in /proc/PID/map_files
    device: bytes  # device and inode; on btrfs and overlayfs stat(2) says others
    name: str  # from our root or from that of the process, see `locate`
    deleted: bool
    offset: int = 0  # of the mapped bytes in the file

    @property
    def start(self) -> int:
        """The address at which the mapping begins."""
        return int(self.area.partition("-")[0], 16)


def executed(proc: Path, pid: int, failures: Counter[str]) -> Iterator[Mapping]:
    """Each file that a process maps as executable, once. Raises OSError as reading maps does."""
    seen: set[tuple[bytes, bytes]] = set()
    for match in _EXECUTABLE.finditer(_maps(proc, pid, failures)):
        area, offset, device, name = match.groups()
        if (device, name) not in seen:
            seen.add((device, name))
            path = os.fsdecode(name)
            if not path.startswith(_NO_FILES):
                deleted = path.endswith(_DELETED)
                path = path.removesuffix(_DELETED)
                yield Mapping(_entry(area.decode()), device, path, deleted, int(offset, 16))


def _entry(area: str) -> str:
    """The name in /proc/PID/map_files: `maps` pads low addresses (of non-PIE programs) with 0."""
    return "-".join(f"{int(address, 16):x}" for address in area.split("-"))


def _maps(proc: Path, pid: int, failures: Counter[str]) -> bytes:
    pieces: list[bytes] = []
    size = 0
    with (proc / str(pid) / "maps").open("rb", buffering=0) as stream:
        while piece := stream.read(1 << 16):
            pieces.append(piece)
            size += len(piece)
            if size > _MAX_MAPS_BYTES:
                failures["maps_too_long"] += 1
                break
    return b"".join(pieces)


def locate(proc: Path, pid: int, mapping: Mapping, *, verify: bool = True) -> int:
    """The file behind a mapping, as a descriptor (O_PATH) that the caller closes.

    The kernel writes names from our root, or from the root of the process's mount namespace. So in
    a container a name counts from the root of the process; after chroot(2) it begins with that
    root, unless the file was mapped before. A name below the root of the process is looked up as
    the process would, so that its symlinks do not lead to files of ours.

    Raises OSError when no file has the name, OtherFileError when another file than the mapped one
    has it. Without `verify` that other file is returned.
    """
    link = f"{proc}/{pid}/root"
    root = os.readlink(link)  # noqa: PTH115 - for each file of each new process
    name = mapping.name
    below = _below(link, name)
    ours: Callable[[], int] = partial(openat.without_symlinks, name)
    if root == "/":
        candidates = [below, ours]
    elif name.startswith(f"{root}/"):
        candidates = [_below(link, name.removeprefix(root)), ours]
    else:
        candidates = [ours, below]
    failure: OSError | None = None
    for candidate in candidates:
        try:
            found = candidate()
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            failure = failure or error
            continue
        if not verify or _is_mapped(found, proc, pid, mapping):
            return found
        os.close(found)
        failure = OtherFileError(errno.ENOENT, f"{name} is another file than the one mapped")
    assert failure is not None
    raise failure


def _below(link: str, name: str) -> Callable[[], int]:
    def opened() -> int:
        root = os.open(link, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return openat.below(root, name)
        finally:
            os.close(root)

    return opened


def _is_mapped(fd: int, proc: Path, pid: int, mapping: Mapping) -> bool:
    """Is an open file the one behind a mapping?"""
    status = os.fstat(fd)
    device, _, inode = mapping.device.partition(b" ")
    major, _, minor = device.partition(b":")
    same_inode = status.st_ino == int(inode)
    if same_inode and status.st_dev == os.makedev(int(major, 16), int(minor, 16)):
        return True
    try:
        # The kernel's own answer, which takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
        behind = os.stat(f"{proc}/{pid}/map_files/{mapping.area}")  # noqa: PTH116
        return os.path.samestat(behind, status)
    except OSError:
        kind = links.filesystem(fd)
    # For subvolumes stat(2) says another device than the mapping, on overlayfs another inode too.
    return kind == _OVERLAYFS or (same_inode and kind in _SUBVOLUMES)


def open_ours(name: str, status: os.stat_result) -> int | None:
    """The same file (O_PATH) in our own mount namespace; None where it has not this name there."""
    try:
        fd = openat.without_symlinks(name)
    except OSError:
        return None
    if os.path.samestat(os.fstat(fd), status):
        return fd
    os.close(fd)
    return None


def open_file(path: str) -> int:
    """Opens a regular file for reading. Opening any other file could block or have an effect."""
    held = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(held).st_mode):
            raise OSError(errno.ENOENT, f"{path} is no regular file any more")
        return os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(held)
