"""Remembers what was found in a binary, whichever file, mount or container it is met in.

A file is known again by what stat(2) says. Another file with the same build id is the same binary
only when all of it is the same, too: a build id is what its author wrote into it, and
offsets from a file that lies about it would lead a probe into the middle of an instruction.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import TypeVar

from throughline.golang import buildinfo
from throughline.golang.analysis import analyse
from throughline.golang.image import Image
from throughline.golang.program import Program, UnsupportedError
from throughline.kernel.elf import Elf, MalformedError

_MAX_FILES = 1 << 12
_MAX_PROGRAMS = 1 << 6

_Outcome = Program | None | UnsupportedError | MalformedError
_Key = TypeVar("_Key")


class Cache:
    """Calls `analyse` once for each binary."""

    def __init__(self, *, files: int = _MAX_FILES, programs: int = _MAX_PROGRAMS) -> None:
        self._max_files, self._max_programs = files, programs
        self._files: OrderedDict[tuple[int, ...], _Outcome] = OrderedDict()
        self._programs: OrderedDict[tuple[str, str], _Outcome] = OrderedDict()
        self.analysed = 0

    def analyse(self, fd: int) -> Program | None:
        """As `throughline.golang.analyse`."""
        identity = _identity(fd)
        if identity in self._files:
            self._files.move_to_end(identity)
            outcome = self._files[identity]
        else:
            outcome = self._look_up(fd)
            if _identity(fd) == identity:  # not written to meanwhile
                _keep(self._files, identity, outcome, self._max_files)
        if isinstance(outcome, UnsupportedError | MalformedError):
            raise type(outcome)(*outcome.args)
        return outcome

    def _look_up(self, fd: int) -> _Outcome:
        try:
            elf = Elf.open(fd)
            if elf is None or not buildinfo.is_go(Image(elf)):
                return None
            key = buildinfo.build_id(elf), buildinfo.digest(elf)
        except (UnsupportedError, MalformedError) as error:
            return error
        if key in self._programs:
            self._programs.move_to_end(key)
            return self._programs[key]
        outcome = self._analyse(fd)
        _keep(self._programs, key, outcome, self._max_programs)
        return outcome

    def _analyse(self, fd: int) -> _Outcome:
        self.analysed += 1
        try:
            return analyse(fd)
        except (UnsupportedError, MalformedError) as error:
            return error


def _identity(fd: int) -> tuple[int, ...]:
    status = os.fstat(fd)
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _keep(table: OrderedDict[_Key, _Outcome], key: _Key, outcome: _Outcome, limit: int) -> None:
    table[key] = outcome
    if len(table) > limit:
        table.popitem(last=False)
