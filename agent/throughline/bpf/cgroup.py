"""A cgroup's directory, which its owner may close or remove at any time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ClosedError(OSError):
    """A cgroup that has gone, or that its owner does not let this user open."""


@contextmanager
def opened(cgroup2: Path, name: str) -> Iterator[int]:
    """A descriptor of the directory. Raises ClosedError."""
    try:
        fd = os.open(cgroup2 / name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ClosedError(error.errno, f"/{name}: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def inode(cgroup2: Path, name: str) -> int:
    """The cgroup's id; 0: there is no such cgroup now, as far as this user may know."""
    try:
        return os.stat(cgroup2 / name).st_ino  # noqa: PTH116
    except OSError:
        return 0
