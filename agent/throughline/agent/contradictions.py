"""What contradicts the evidence of programs, kept in a file across restarts of host and agent.

Pinned maps go on when the agent crashes or is reloaded. They end with an orderly stop, with the
host, and with a release that has other maps.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from throughline.bpf import contradicted
from throughline.bpf.contradicted import MAX_ENTRIES, Contradicted
from throughline.steps import Turns

log = logging.getLogger(__name__)

KEEP_SECONDS = 10.0  # between two looks at the map
_VERSION = 1
_MAX_BYTES = 4 << 20
_NUMBERS = ("cgroup", "inode", "size", "device", "generation")


class Contradictions:
    """The file. It is in the agent's own directory, and is not trusted to have any shape."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._next = 0.0
        self._written: frozenset[Contradicted] = frozenset()

    def recall(self, table: int) -> None:
        """Fills the map, before programs read it. A file that is damaged is ignored."""
        try:
            found = _read(self._path)
            contradicted.add(table, found)
            self._written = frozenset(found)
        except FileNotFoundError:
            return
        except Exception as error:
            log.warning(
                "%s is ignored: what contradicts the evidence of programs has to be seen again: %s",
                self._path,
                error,
            )

    def keeping(self, table: int, *, now: bool = False) -> Turns[None]:
        """Writes the file where the map has changed, at most every ten seconds unless `now`.

        Raises OSError.
        """
        if not now and self._clock() < self._next:
            return
        self._next = self._clock() + KEEP_SECONDS
        found = frozenset((yield from contradicted.read(table)))
        if found == self._written:
            return
        content = {"version": _VERSION, "programs": [asdict(one) for one in found]}
        self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        partial = self._path.with_name(f".{self._path.name}.partial")
        partial.write_text(json.dumps(content), encoding="ascii")
        partial.chmod(0o600)
        partial.replace(self._path)
        self._written = found


def _read(path: Path) -> list[Contradicted]:
    """Raises OSError, and ValueError for a file that is no such file."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as stream:
        text = stream.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise ValueError("it is too long")
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise ValueError("it is of another version")
    programs = content.get("programs")
    if not isinstance(programs, list) or len(programs) > MAX_ENTRIES:
        raise ValueError("it has no programs, or too many")
    return [_program(item) for item in programs]


def _program(item: Any) -> Contradicted:
    if not isinstance(item, dict):
        raise ValueError("a program is no mapping")
    numbers: dict[str, Any] = {name: item.get(name) for name in _NUMBERS}
    seen = item.get("seen")
    if not all(type(value) is int for value in numbers.values()):
        raise ValueError("a program lacks a number")
    if not isinstance(seen, list) or not all(isinstance(one, str) for one in seen):
        raise ValueError("a program lacks what was seen")
    return Contradicted(**numbers, seen=tuple(seen))
