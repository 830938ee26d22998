"""The directories of the cgroup2 mount: one is opened, or the tree is walked in turns.

The owner of a cgroup may close or remove it at any time. The tree may be large, so a walk gives
way after each few cgroups: spans are handled meanwhile.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from throughline.steps import Turns

# The errors for a process, a cgroup or a file that ended after it was found.
GONE = {errno.ENOENT, errno.ESRCH, errno.ENOTDIR, errno.ENODEV}

# A walk stops after this many cgroups: a user who owns a subtree can make any number of them.
MAX_CGROUPS = 1 << 16
_EACH_TURN = 32  # cgroups, about 1 ms


class ClosedError(OSError):
    """A cgroup that has gone, or that its owner does not let this user open."""


@contextmanager
def opened(cgroup2: Path, name: str) -> Iterator[int]:
    """A descriptor of a cgroup's directory. Raises ClosedError."""
    try:
        fd = _open(cgroup2 / name)
    except OSError as error:
        raise ClosedError(error.errno, f"/{name}: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def is_open(path: Path) -> bool:
    """Returns whether this user may open the directory; attaching a program requires that."""
    try:
        os.close(_open(path))
    except OSError:
        return False
    return True


def inode(cgroup2: Path, name: str) -> int:
    """The cgroup's id; 0 when there is no such cgroup or this user may not know of it."""
    try:
        return os.stat(cgroup2 / name).st_ino  # noqa: PTH116
    except OSError:
        return 0


def exists(path: Path) -> bool:
    """Returns whether there is such a cgroup, as far as this user may know."""
    try:
        os.stat(path)  # noqa: PTH116 - Path.exists raises errors that the cgroup's owner can cause
    except OSError:
        return False
    return True


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


@dataclass(slots=True)
class Walked:
    """The result of a walk."""

    paths: dict[int, str] = field(default_factory=dict)  # id -> path below the mount
    unreadable: set[str] = field(default_factory=set)  # the cgroups in these are not known
    cut: bool = False  # there are more than MAX_CGROUPS


def walk(cgroup2: Path, roots: Iterable[str]) -> Turns[Walked]:
    """Every cgroup at and below `roots`, those near the roots first.

    A cgroup that vanishes meanwhile is left out. One that this user may not read, or whose path is
    too long, is `unreadable`. Never raises OSError.
    """
    walked = Walked()
    pending: deque[str] = deque()
    for root in roots:
        try:
            walked.paths[os.stat(cgroup2 / root).st_ino] = root  # noqa: PTH116
        except OSError as error:
            if error.errno not in GONE:
                walked.unreadable.add(root)
            continue
        pending.append(root)
    count = 0
    while pending:
        path = pending.popleft()
        count += 1
        if count % _EACH_TURN == 0:
            yield
        try:
            with os.scandir(f"{cgroup2}/{path}") as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        continue
                    if len(walked.paths) >= MAX_CGROUPS:
                        walked.cut = True
                        return walked
                    child = f"{path}/{entry.name}" if path else entry.name
                    walked.paths[entry.inode()] = child
                    pending.append(child)
        except OSError as error:
            if error.errno not in GONE:
                walked.unreadable.add(path)
    return walked


def first_process(*directories: Path) -> int:
    """A process of the first of these cgroups that has one that we may see; 0 for none."""
    for directory in directories:
        try:
            for pid in (directory / "cgroup.procs").read_bytes().split()[:1]:
                if pid != b"0":  # a process of a PID namespace that is not below ours
                    return int(pid)
        except (OSError, ValueError):
            continue
    return 0
