"""What is read of a file with CPython in it: where to probe, and where its processes keep things.

Only what the file exports is used: `PyContext_CopyCurrent`, `_PyRuntime` and `PyContext_Type` are
there in stripped builds too, in a libpython as in a program that is linked statically. Offsets
inside of CPython's structs are those of the minor version (Include/cpython/pystate.h, and
Include/internal/pycore_runtime.h). The programs check at each use that a PyThreadState names its
thread, and that a context names its type: in a process with another layout they find nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from throughline.bpf import abi
from throughline.elf.elf import Elf, Function, MalformedError
from throughline.probes import arch
from throughline.probes.site import Site, c_sites
from throughline.runtimes.python.stack import TYPES, Places

COPY = "PyContext_CopyCurrent"
_RUNTIME, _CONTEXT_TYPE, _VERSION = "_PyRuntime", "PyContext_Type", "Py_Version"
# Functions that are new in a version: before 3.11 no variable tells the version.
_NEW_IN = (("PyModule_AddObjectRef", 10), ("PyObject_CallNoArgs", 9))
_DEALLOC_AT = 48  # PyTypeObject.tp_dealloc
# Of PyTypeObject. In builds without the GIL ("free threading") objects have a larger head.
_TYPE_SIZES = (408, 416)
_DT_RELA, _DT_RELASZ, _DT_RELACOUNT = 7, 8, 0x6FFFFFF9
_RELOCATION = struct.Struct("<QQq")
_MAX_RELOCATIONS = 1 << 20


class UnsupportedError(ValueError):
    """CPython that cannot be followed; the text says why."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Offsets of a minor version."""

    key: int  # _PyRuntime.autoTSSkey
    current: int  # _PyRuntime.gilstate.tstate_current; 0 since 3.12: it is the thread's own
    thread_id: int  # in PyThreadState
    context: int


LAYOUTS = {
    9: Layout(key=584, current=568, thread_id=176, context=240),
    10: Layout(key=584, current=568, thread_id=176, context=240),
    11: Layout(key=592, current=576, thread_id=152, context=224),
    12: Layout(key=1544, current=0, thread_id=136, context=208),
    13: Layout(key=2160, current=0, thread_id=152, context=208),
    14: Layout(key=2336, current=0, thread_id=152, context=208),
}


_THREAD_CONTEXTS = 14  # since then threading.Thread runs in a context of its own


@dataclass(frozen=True, slots=True)
class Interpreter:
    """CPython in a file, which can be followed."""

    version: str  # "3.12.1", or "3.10" where the patch level is not known
    sites: tuple[Site, ...]  # without cookies
    packed: bytes  # struct tl_python_binary
    places: Places | None  # None: it does not export them

    def beside(self, pthread_at: int) -> bytes:
        """`packed` for processes whose C library has struct pthread there."""
        fields = abi.PythonBinary(*abi.PYTHON_BINARY.unpack(self.packed))
        return abi.PYTHON_BINARY.pack(*fields._replace(pthread_at=pthread_at))


def find(file: int) -> Interpreter | None:
    """CPython in an open file; None where there is none.

    Raises OSError, MalformedError, and UnsupportedError for CPython that cannot be followed.
    """
    elf = arch.open_elf(file)
    functions = elf.functions(COPY, [name for name, _ in _NEW_IN]) if elf else {}
    if elf is None or COPY not in functions:
        return None
    variables = elf.objects((_RUNTIME, _CONTEXT_TYPE, _VERSION, *TYPES))
    version, minor = _version(elf, functions, variables)
    layout = LAYOUTS.get(minor)
    if layout is None:
        raise UnsupportedError(f"Python {version}")
    if _RUNTIME not in variables or _CONTEXT_TYPE not in variables:
        raise UnsupportedError(f"Python {version} that does not export {_RUNTIME}")
    kind = variables[_CONTEXT_TYPE]
    if kind.size not in _TYPE_SIZES:
        raise UnsupportedError(f"Python {version} with other objects: it has no GIL")
    copies = tuple(
        site
        for site in c_sites(elf, functions[COPY].address, "tl_py_copied", "tl_py_copied")
        if site.returns
    )
    frees = c_sites(elf, _pointer(elf, kind.address + _DEALLOC_AT), "tl_py_freed")
    if not copies or not frees:
        raise MalformedError(f"no code of {COPY}, or of the end of contexts")
    packed = abi.PYTHON_BINARY.pack(
        variables[_RUNTIME].address,
        kind.address,
        layout.key,
        layout.current,
        layout.thread_id,
        layout.context,
        arch.here().SPECIFIC_AT,
        arch.here().PTHREAD_AT or 0,
        minor >= _THREAD_CONTEXTS,
    )
    places = None
    if all(name in variables for name in TYPES):
        kinds = (variables[name].address for name in TYPES)
        places = Places(minor, variables[_RUNTIME].address, *kinds)
    return Interpreter(version, (*copies, *frees), packed, places)


def _version(
    elf: Elf, functions: dict[str, Function], variables: dict[str, Function]
) -> tuple[str, int]:
    """The version, and its second number."""
    if _VERSION not in variables:
        for name, minor in _NEW_IN:
            if name in functions:
                return f"3.{minor}", minor
        return "before 3.9", 0
    offset = elf.offset(variables[_VERSION].address)
    if offset is None:
        raise MalformedError(f"{_VERSION} is not in the file")
    (number,) = struct.unpack("<I", elf.read(offset, 4))
    major, minor, patch = number >> 24, number >> 16 & 255, number >> 8 & 255
    return f"{major}.{minor}.{patch}", minor if major == 3 else 0


def _pointer(elf: Elf, address: int) -> int:
    """The pointer that is at an address once the file is loaded, as linked; 0 where it is none."""
    offset = elf.offset(address)
    if offset is None:
        raise MalformedError(f"{address:#x} is not in the file")
    (value,) = struct.unpack("<Q", elf.read(offset, 8))
    return int(value) or _relocated(elf, address)


def _relocated(elf: Elf, address: int) -> int:
    """The addend of the relative relocation of an address.

    Linkers put the relative ones first, and sort them by address (-z combreloc).
    """
    tags = elf.tags()
    table = elf.offset(tags.get(_DT_RELA, 0))
    size = tags.get(_DT_RELASZ, 0) // _RELOCATION.size
    count = min(tags.get(_DT_RELACOUNT, size), size)
    if table is None or count > _MAX_RELOCATIONS:
        return 0
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        place, kind, addend = _RELOCATION.unpack(
            elf.read(table + middle * _RELOCATION.size, _RELOCATION.size)
        )
        if place == address:
            return int(addend) if kind == arch.here().RELATIVE else 0
        low, high = (middle + 1, high) if place < address else (low, middle)
    return 0
