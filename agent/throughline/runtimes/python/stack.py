"""What the threads of a process of CPython are calling: the files and names of their functions.

The process is not stopped: a thread may go on while its frames are read. So each object has to name
its type, and each loop has a bound. The outer frames of a thread that serves stay where they are.

Offsets are those of the minor version: `PyFrameObject` (3.9, 3.10), `_PyInterpreterFrame` (from
3.11 on, Include/internal/pycore_frame.h), `PyCodeObject`, `PyASCIIObject`. For 3.13 and 3.14
`_PyRuntime` itself tells them (`_Py_DebugOffsets`): the table has the same.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from throughline.host.memory import Memory, word_at
from throughline.runtimes.python.classes import Classes

TYPES = ("PyCode_Type", "PyUnicode_Type", "PyFunction_Type")  # which the file exports
_WORD = struct.Struct("<Q")
_NEXT_AT, _TYPE_AT, _LENGTH_AT, _STATE_AT = 8, 8, 16, 32
_THREAD_BYTES = 256  # of PyThreadState, with all that is read of it
_FRAME_BYTES = 80
_COMPACT_ASCII = 0b11 << 5  # bits of PyASCIIObject.state
_TAG = 0b11  # of a _PyStackRef (3.14)
_MAX_THREADS = 1024
_MAX_OFFSET = 1 << 20
_MAX_FRAMES = 128
_MAX_TEXT = 4096
_TAIL = 64  # bytes of a name that are read: its end


@dataclass(frozen=True, slots=True)
class Layout:
    """Offsets of a minor version."""

    interpreter: int  # _PyRuntime.interpreters.main; 0: _PyRuntime tells these three
    main_thread: int  # _PyRuntime.main_thread
    threads: int  # PyInterpreterState: the newest thread
    thread_id: int  # PyThreadState
    frame: int  # PyThreadState.frame, .cframe or .current_frame
    held_at: int | None  # _PyCFrame.current_frame, where there is one
    code: int  # in a frame
    previous: int
    owner: int | None
    locals: int  # the first local variable
    name: int  # PyCodeObject.co_name; co_filename is in front of it
    text: int  # sizeof(PyASCIIObject)


LAYOUTS = {
    9: Layout(40, 72, 8, 176, 24, None, 32, 24, None, 360, 112, 48),
    10: Layout(40, 72, 8, 176, 24, None, 32, 24, None, 352, 112, 48),
    11: Layout(48, 80, 16, 152, 56, 8, 32, 48, 69, 72, 120, 48),
    12: Layout(48, 64, 72, 136, 56, 0, 0, 8, 70, 72, 120, 40),
    13: Layout(0, 0, 0, 152, 72, None, 0, 8, 70, 72, 120, 40),
    14: Layout(0, 0, 0, 152, 72, None, 0, 8, 74, 80, 120, 40),
}
_OFFSETS = struct.Struct("<8s9Q")  # the begin of struct _Py_DebugOffsets
_COOKIE = b"xdebugpy"
_BY_INTERPRETER = 3  # owners from here on: the frame stands for a call from C


def is_file(path: str, end: str) -> bool:
    """Does the path end in these names of folders and file?"""
    return f"/{path}".endswith(f"/{end}")


class Call(NamedTuple):
    """A function that a thread is in. Each text is the end of a longer one, or "" if not ASCII."""

    file: str
    function: str

    def is_of(self, known: Call) -> bool:
        """Is it this function? `known.file` is the end of a path."""
        return self.function == known.function and is_file(self.file, known.file)


class Frame(NamedTuple):
    """A call of a function that has not returned yet."""

    call: Call
    at: int


@dataclass(frozen=True, slots=True)
class Places:
    """Where a file with CPython keeps things: addresses as linked."""

    minor: int  # of the version, in LAYOUTS
    runtime: int
    code_type: int
    text_type: int
    function_type: int


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread that Python knows."""

    id: int  # pthread_self()
    main: bool
    state: bytes  # the begin of its PyThreadState


class Stacks:
    """The threads of one process. Raises OSError where its memory is not what it should be."""

    def __init__(self, memory: Memory, places: Places, base: int) -> None:
        """`base`: what is added to addresses as linked."""
        self._memory = memory
        self._layout = LAYOUTS[places.minor]
        self._runtime = base + places.runtime
        self._code_type = base + places.code_type
        self._text_type = base + places.text_type
        self._function_type = base + places.function_type
        self._classes = Classes(memory, places.minor)
        self._calls: dict[int, Call] = {}  # by address of the code object

    def threads(self) -> Iterator[Thread]:
        """The threads of the main interpreter, the main one first."""
        memory, runtime, layout = self._memory, self._runtime, self._told()
        main = memory.word(runtime + layout.main_thread)
        interpreter = memory.word(runtime + layout.interpreter)
        at = memory.word(interpreter + layout.threads) if interpreter else 0  # it begins
        others: list[Thread] = []
        for _ in range(_MAX_THREADS):
            if not at:
                break
            state = memory.read(at, _THREAD_BYTES)
            number = word_at(state, layout.thread_id)
            thread = Thread(number, number == main, state)
            if thread.main:
                yield thread
            else:
                others.append(thread)
            at = word_at(state, _NEXT_AT)
        yield from others

    def frames(self, thread: Thread) -> list[Frame]:
        """What a thread is in, from the inner to the outer function."""
        layout = self._layout
        at = word_at(thread.state, layout.frame)
        if layout.held_at is not None:
            at = self._memory.word(at + layout.held_at)
        found: list[Frame] = []
        for _ in range(_MAX_FRAMES):
            if not at:
                return found
            frame = self._memory.read(at, _FRAME_BYTES)
            if layout.owner is None or frame[layout.owner] < _BY_INTERPRETER:
                found.append(Frame(self._call(word_at(frame, layout.code) & ~_TAG), at))
            at = word_at(frame, layout.previous)
        raise OSError(errno.E2BIG, "a thread is in too many functions")

    def methods(self, frame: Frame, names: Collection[str]) -> dict[str, str]:
        """The files of these methods of the object whose method the frame calls.

        "" for one that is no function of Python. Names that its class does not have are left out.
        """
        found: dict[str, str] = {}
        instance = self._memory.word(frame.at + self._layout.locals) & ~_TAG
        for at, value in self._classes.defined(instance):
            name = self._text(at)
            if name in names and name not in found:
                found[name] = ""
                if self._classes.type_of(value) == self._function_type:
                    found[name] = self._call(self._classes.code(value)).file
        return found

    def _told(self) -> Layout:
        """The layout, with what _PyRuntime tells of it."""
        if self._layout.interpreter:
            return self._layout
        data = self._memory.read(self._runtime, _OFFSETS.size)
        cookie, version, _, _, _, interpreters, _, _, _, threads = _OFFSETS.unpack(data)
        if cookie != _COOKIE or LAYOUTS.get(version >> 16 & 255) != self._layout:
            raise OSError(errno.EFAULT, f"no offsets at {self._runtime:#x}")
        if max(interpreters, threads) > _MAX_OFFSET:
            raise OSError(errno.EFAULT, f"offsets of {interpreters} and {threads}")
        # .head, .main, .next_id, and behind them .main_thread
        main = interpreters + _WORD.size
        places = {"interpreter": main, "main_thread": main + 2 * _WORD.size, "threads": threads}
        return replace(self._layout, **places)

    def _call(self, code: int) -> Call:
        known = self._calls.get(code)
        if known is None:
            name = self._layout.name
            data = self._memory.read(code, name + _WORD.size)
            if word_at(data, _TYPE_AT) != self._code_type:
                raise OSError(errno.EFAULT, f"no code at {code:#x}")
            file, function = (word_at(data, at) for at in (name - _WORD.size, name))
            known = self._calls[code] = Call(self._text(file), self._text(function))
        return known

    def _text(self, at: int) -> str:
        """The end of a text."""
        size = self._layout.text
        head = self._memory.read(at, size)
        length = word_at(head, _LENGTH_AT)
        if word_at(head, _TYPE_AT) != self._text_type or length > _MAX_TEXT:
            raise OSError(errno.EFAULT, f"no text at {at:#x}")
        if head[_STATE_AT] & _COMPACT_ASCII != _COMPACT_ASCII:
            return ""
        tail = min(length, _TAIL)
        return self._memory.read(at + size + length - tail, tail).decode("ascii", "replace")
