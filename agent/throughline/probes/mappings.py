"""Which files the processes of a cgroup execute, from /proc: cgroup.procs, exe, maps."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from throughline.bpf import links
from throughline.host import openat
from throughline.services.cgroups import GONE
from throughline.steps import Turns

_EACH_TURN = 32  # cgroups, about 1 ms
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_OVERLAYFS = 0x794C7630  # f_type, include/uapi/linux/magic.h
_SUBVOLUMES = {0x9123683E, 0xCA451A4E}  # btrfs, bcachefs
_MAX_MAPS_BYTES = 4 << 20
_EXECUTABLE = re.compile(
    rb"^([0-9a-f]+-[0-9a-f]+) ..x. [0-9a-f]+ ([0-9a-f]+:[0-9a-f]+ [1-9][0-9]*) +(/.*)$", re.M
)
_DELETED = " (deleted)"
# memory that has a name, and no file
_NO_FILES = ("/memfd:", "/dev/", "/SYSV", "/anon_hugepage")


class OtherFileError(OSError):
    """What stands under the name of a mapping is not the file that is mapped."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """An executable mapping of a file."""

    area: str  # its addresses, the name of its entry in /proc/PID/map_files
    device: bytes  # device and inode: on btrfs and overlayfs not what stat(2) says
    name: str  # seen from our root or from that of the process, see `locate`
    deleted: bool


def pids(cgroups: Iterable[str], failures: Counter[str]) -> Turns[set[int]]:
    """The processes that are in these cgroups, themselves and not below."""
    found: set[int] = set()
    for count, path in enumerate(cgroups, 1):
        try:
            found.update(map(int, _read(f"{path}/cgroup.procs").split()))
        except OSError as error:
            # a threaded cgroup (EOPNOTSUPP) has its processes listed by its parent
            if error.errno not in GONE | {errno.EOPNOTSUPP}:
                failures["cgroup_unreadable"] += 1
        if count % _EACH_TURN == 0:
            yield
    return found - {0}  # 0: in a PID namespace that is not below ours


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 - each second, for each cgroup
        return stream.read()


def executable(proc: Path, pid: int) -> str:
    """What it executes; "" when it has ended, is a kernel thread, or is not ours to look at."""
    try:
        return os.readlink(f"{proc}/{pid}/exe")  # noqa: PTH115 - each second, for each process
    except OSError:
        return ""


def identity(proc: Path, pid: int) -> tuple[str, int]:
    """Differs when a process executes another program, and when its number is another's now.

    What it executes, and when it began, in clock ticks since boot (field 22 of proc(5) stat).
    """
    try:
        # the name before it may hold anything, also parentheses
        started = int(_read(f"{proc}/{pid}/stat").rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        started = 0
    return executable(proc, pid), started


def seen(proc: Path, pid: int) -> tuple[int, int]:
    """The inode of /proc/PID, which the kernel makes anew for a number that is used again.

    It may do so for the same process, too; while it is the same, so is the process. To ask for it
    takes a tenth of the time that `identity` takes.
    """
    try:
        status = os.stat(f"{proc}/{pid}")  # noqa: PTH116 - each second, for each process
    except OSError:
        return 0, 0
    return status.st_ino, status.st_ctime_ns


def executed(proc: Path, pid: int, failures: Counter[str]) -> Iterator[Mapping]:
    """Each file that a process maps as executable, once. Raises OSError as reading maps does."""
    seen: set[tuple[bytes, bytes]] = set()
    for match in _EXECUTABLE.finditer(_maps(proc, pid, failures)):
        area, device, name = match.groups()
        if (device, name) not in seen:
            seen.add((device, name))
            path = os.fsdecode(name)
            if not path.startswith(_NO_FILES):
                deleted = path.endswith(_DELETED)
                yield Mapping(area.decode(), device, path.removesuffix(_DELETED), deleted)


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
    """What a process maps, as a descriptor (O_PATH) that the caller closes.

    The kernel tells names up to our root, or up to that of the process's mount namespace. So in a
    container they are below the process's root as they stand; after chroot(2) they begin with its
    root, apart from what was mapped before. A name below the root of the process is looked up as
    the process would, so that its symlinks do not lead to files of ours.

    Raises OSError when none leads anywhere, OtherFileError when what is there is not what is
    mapped. Without `verify` that is returned.
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
        # as the kernel has it, where CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN permit to ask
        behind = os.stat(f"{proc}/{pid}/map_files/{mapping.area}")  # noqa: PTH116
        return os.path.samestat(behind, status)
    except OSError:
        kind = links.filesystem(fd)
    # stat(2) says another device than the mappings for subvolumes, on overlayfs also another inode
    return kind == _OVERLAYFS or (same_inode and kind in _SUBVOLUMES)


def open_ours(name: str, status: os.stat_result) -> int | None:
    """The same file (O_PATH) by its name in our own mount namespace, if it has that there, too."""
    try:
        fd = openat.without_symlinks(name)
    except OSError:
        return None
    if os.path.samestat(os.fstat(fd), status):
        return fd
    os.close(fd)
    return None


def open_file(path: str) -> int:
    """A regular file for reading; nothing else is opened, which could have an effect or block."""
    held = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(held).st_mode):
            raise OSError(errno.ENOENT, f"{path} is no regular file any more")
        return os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(held)
