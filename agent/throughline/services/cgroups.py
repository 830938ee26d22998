"""The tree of cgroups, walked in turns: others own parts of it, and spans wait meanwhile."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from throughline.steps import Turns

# a process, a cgroup or a file that ended between two looks
GONE = {errno.ENOENT, errno.ESRCH, errno.ENOTDIR, errno.ENODEV}

MAX_CGROUPS = 1 << 16  # that are followed: who has a subtree of his own can make any number
_EACH_TURN = 32  # cgroups, about 1 ms


@dataclass(slots=True)
class Walked:
    """What a walk has found."""

    paths: dict[int, str] = field(default_factory=dict)  # id -> path below the mount
    unreadable: set[str] = field(default_factory=set)  # what is in these is not known
    cut: bool = False  # there are more than MAX_CGROUPS


def walk(cgroup2: Path, roots: Iterable[str]) -> Turns[Walked]:
    """Every cgroup at and below `roots`, those near the roots first.

    One that vanishes meanwhile is left out; one that this user may not look into, or whose path is
    too long to be opened, is `unreadable`. Never raises OSError.
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


def exists(path: Path) -> bool:
    """Is there a cgroup, as far as this user may know?"""
    try:
        os.stat(path)  # noqa: PTH116 - Path.is_dir raises what its owner can bring about
    except OSError:
        return False
    return True


def is_open(path: Path) -> bool:
    """Is there a directory that this user may open, as attaching a program to a cgroup asks?"""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
