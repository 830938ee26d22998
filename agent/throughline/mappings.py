"""Which files the processes of a cgroup execute, from /proc: cgroup.procs, exe, maps."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# a process, a cgroup or a file that ended between two looks
GONE = {errno.ENOENT, errno.ESRCH, errno.ENOTDIR, errno.ENODEV}

_MAX_MAPS_BYTES = 4 << 20
_EXECUTABLE = re.compile(
    rb"^([0-9a-f]+-[0-9a-f]+) ..x. [0-9a-f]+ ([0-9a-f]+:[0-9a-f]+ [1-9][0-9]*) +(/.*)$", re.M
)
_DELETED = " (deleted)"
# memory that has a name, and no file
_NO_FILES = ("/memfd:", "/dev/", "/SYSV", "/anon_hugepage")


@dataclass(frozen=True, slots=True)
class Mapping:
    """An executable mapping of a file."""

    area: str  # its addresses, the name of its entry in /proc/PID/map_files
    device: bytes  # device and inode: on btrfs and overlayfs not what stat(2) says
    name: str  # seen from our root or from that of the process, see `locate`
    deleted: bool


def pids(cgroups: Iterable[Path], failures: Counter[str]) -> set[int]:
    """The processes that are in these cgroups, themselves and not below."""
    found: set[int] = set()
    for path in cgroups:
        try:
            found.update(map(int, (path / "cgroup.procs").read_text().split()))
        except OSError as error:
            # a threaded cgroup (EOPNOTSUPP) has its processes listed by its parent
            if error.errno not in GONE | {errno.EOPNOTSUPP}:
                failures["cgroup_unreadable"] += 1
    return found - {0}  # 0: in a PID namespace that is not below ours


def executable(proc: Path, pid: int) -> str:
    """What it executes; "" when it has ended, is a kernel thread, or is not ours to look at."""
    try:
        return os.readlink(f"{proc}/{pid}/exe")  # noqa: PTH115 - each second, for each process
    except OSError:
        return ""


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


def locate(proc: Path, pid: int, name: str) -> str:
    """A path by which we reach what a process maps under `name`.

    The kernel tells names up to our root, or up to that of the process's mount namespace. So in a
    container they are below the process's root as they stand; after chroot(2) they begin with its
    root, apart from what was mapped before. Raises OSError when none leads anywhere.
    """
    inside = f"{proc}/{pid}/root"
    root = os.readlink(inside)  # noqa: PTH115 - for each file of each new process
    if root == "/":
        candidates = [f"{inside}{name}", name]
    elif name.startswith(f"{root}/"):
        candidates = [f"{inside}{name.removeprefix(root)}", name]
    else:
        candidates = [name, f"{inside}{name}"]
    for candidate in candidates[:-1]:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.stat(candidate)  # noqa: PTH116
            return candidate
    os.stat(candidates[-1])  # noqa: PTH116
    return candidates[-1]


def is_ours(name: str, status: os.stat_result) -> bool:
    """Is a file to be reached by its name in our own mount namespace, too?"""
    try:
        return os.path.samestat(os.stat(name), status)  # noqa: PTH116
    except OSError:
        return False


def open_file(path: str) -> int:
    """A regular file for reading; nothing else is opened, which could have an effect or block."""
    held = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(held).st_mode):
            raise OSError(errno.ENOENT, f"{path} is no regular file any more")
        return os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(held)
