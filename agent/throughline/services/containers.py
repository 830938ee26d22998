"""The container behind a cgroup: its id, and the name that Podman has given it.

Engines name the cgroup of a container after its id. Podman runs a container below a process
`conmon`, whose arguments say how the container is called. Docker tells that to root only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from throughline.host import executed

_CGROUP = re.compile(
    r"(?:^|/)(?P<engine>docker|libpod|cri-containerd|crio|nerdctl)(?:-payload)?[-/]"
    r"(?P<id>[0-9a-f]{64})(?:\.scope)?(?=/|$)"
)
_MAX_ANCESTORS = 64  # processes between one of a container and its conmon
_PARENT = 4 - 3  # the field of proc_pid_stat(5), counted behind the name


def container_id(path: str) -> str:
    """The id of the innermost container whose cgroup `path` is, or is in; "" for none."""
    return _innermost(path)[1]


def podman_name(path: str, pid: int, *, proc: Path) -> str:
    """The name of the container with a cgroup and a process.

    "" for a container of another engine, and where no parent of the process tells the name.
    """
    engine, container = _innermost(path)
    if engine == "libpod":
        for words in _ancestors(pid, proc):
            if words[0].rpartition("/")[2] == "conmon" and _value(words, "-c") == container:
                return _value(words, "-n")
    return ""


def _innermost(path: str) -> tuple[str, str]:
    """Engine and id; both are "" outside of any container."""
    found = list(_CGROUP.finditer(path))
    return (found[-1]["engine"], found[-1]["id"]) if found else ("", "")


def _ancestors(pid: int, proc: Path) -> Iterator[list[str]]:
    """The arguments of a process's parent, of that one's parent, and so on."""
    for _ in range(_MAX_ANCESTORS):
        try:
            pid = int(executed.stat(pid, proc=proc)[_PARENT])
            if not pid:
                return
            yield executed.arguments(pid, proc=proc)
        except (OSError, IndexError, ValueError):
            return


def _value(words: list[str], option: str) -> str:
    """The word behind an option, "" without it."""
    try:
        return words[words.index(option) + 1]
    except (ValueError, IndexError):
        return ""
