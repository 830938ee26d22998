"""libbpf through ctypes: prototypes once, one small function per C call, errno becomes OSError.

The only file that knows ctypes signatures. libbpf 1.x is required: its functions return NULL and
set errno. The library is looked for in $THROUGHLINE_LIBDIR (the bundle's own), then on the system.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

_LOG_BYTES = (1 << 24) - 1
BPF_ANY, BPF_NOEXIST, BPF_EXIST = 0, 1, 2

# enum bpf_attach_type (include/uapi/linux/bpf.h)
SK_MSG_VERDICT = 7

_P = ctypes.c_void_p
_CB = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class _OpenOpts(ctypes.Structure):
    """struct bpf_object_open_opts up to kernel_log_level (libbpf 1.0)."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("object_name", ctypes.c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", ctypes.c_char_p),
        ("_attach_prog_fd", ctypes.c_uint32),
        ("kconfig", ctypes.c_char_p),
        ("btf_custom_path", ctypes.c_char_p),
        ("kernel_log_buf", ctypes.c_void_p),
        ("kernel_log_size", ctypes.c_size_t),
        ("kernel_log_level", ctypes.c_uint32),
    ]


_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "bpf_object__open_file": (_P, (ctypes.c_char_p, _P)),
    "bpf_object__load": (ctypes.c_int, (_P,)),
    "bpf_object__close": (None, (_P,)),
    "bpf_object__next_program": (_P, (_P, _P)),
    "bpf_object__find_map_by_name": (_P, (_P, ctypes.c_char_p)),
    "bpf_program__name": (ctypes.c_char_p, (_P,)),
    "bpf_program__section_name": (ctypes.c_char_p, (_P,)),
    "bpf_program__fd": (ctypes.c_int, (_P,)),
    "bpf_program__set_autoload": (ctypes.c_int, (_P, ctypes.c_bool)),
    "bpf_program__attach": (_P, (_P,)),
    "bpf_program__attach_cgroup": (_P, (_P, ctypes.c_int)),
    "bpf_program__attach_iter": (_P, (_P, _P)),
    "bpf_link__fd": (ctypes.c_int, (_P,)),
    "bpf_link__pin": (ctypes.c_int, (_P, ctypes.c_char_p)),
    "bpf_link__destroy": (ctypes.c_int, (_P,)),
    "bpf_link__open": (_P, (ctypes.c_char_p,)),
    "bpf_link_update": (ctypes.c_int, (ctypes.c_int, ctypes.c_int, _P)),
    "bpf_iter_create": (ctypes.c_int, (ctypes.c_int,)),
    "bpf_prog_attach": (ctypes.c_int, (*(ctypes.c_int,) * 3, ctypes.c_uint)),
    "bpf_prog_load": (ctypes.c_int, (ctypes.c_int, *(ctypes.c_char_p,) * 3, ctypes.c_size_t, _P)),
    "bpf_map__fd": (ctypes.c_int, (_P,)),
    "bpf_map__initial_value": (_P, (_P, ctypes.POINTER(ctypes.c_size_t))),
    "bpf_map__set_max_entries": (ctypes.c_int, (_P, ctypes.c_uint32)),
    "bpf_map_create": (ctypes.c_int, (ctypes.c_int, ctypes.c_char_p, *(ctypes.c_uint32,) * 3, _P)),
    "bpf_map_lookup_elem": (ctypes.c_int, (ctypes.c_int, _P, _P)),
    "bpf_map_update_elem": (ctypes.c_int, (ctypes.c_int, _P, _P, ctypes.c_uint64)),
    "bpf_map_delete_elem": (ctypes.c_int, (ctypes.c_int, _P)),
    "bpf_map_get_next_key": (ctypes.c_int, (ctypes.c_int, _P, _P)),
    "bpf_obj_get": (ctypes.c_int, (ctypes.c_char_p,)),
    "bpf_obj_get_info_by_fd": (ctypes.c_int, (ctypes.c_int, _P, ctypes.POINTER(ctypes.c_uint32))),
    "ring_buffer__new": (_P, (ctypes.c_int, _CB, _P, _P)),
    "ring_buffer__consume": (ctypes.c_int, (_P,)),
    "ring_buffer__free": (None, (_P,)),
    "libbpf_set_print": (_P, (_P,)),
    "libbpf_num_possible_cpus": (ctypes.c_int, ()),
}


@cache
def library() -> ctypes.CDLL:
    """Loads libbpf and declares its prototypes. OSError when there is none or it is too old."""
    directory = os.environ.get("THROUGHLINE_LIBDIR")
    if directory and (Path(directory) / "libbpf.so.1").exists():
        for name in ("libz.so.1", "libelf.so.1"):
            path = Path(directory) / name
            if path.exists():
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        lib = ctypes.CDLL(str(Path(directory) / "libbpf.so.1"), use_errno=True)
    else:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = arguments
    lib.libbpf_set_print(None)
    return lib


def _error(call: str, code: int | None = None) -> OSError:
    number = code if code is not None else ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


def _check(result: int, call: str) -> int:
    if result < 0:
        raise _error(call, -result)
    return result


def possible_cpus() -> int:
    return _check(library().libbpf_num_possible_cpus(), "libbpf_num_possible_cpus")


# --- objects --------------------------------------------------------------------------------


class Object:
    """One opened BPF object file; `close` frees it (pins and attached links stay)."""

    def __init__(self, path: Path, *, pin_root: Path) -> None:
        self.path = path
        # The largest that old kernels take; a page of it costs memory only once it is written.
        self._log_pages = mmap.mmap(-1, _LOG_BYTES)
        self._log = (ctypes.c_char * _LOG_BYTES).from_buffer(self._log_pages)
        options = _OpenOpts(
            sz=ctypes.sizeof(_OpenOpts),
            pin_root_path=str(pin_root).encode(),
            kernel_log_buf=ctypes.cast(self._log, ctypes.c_void_p),
            kernel_log_size=_LOG_BYTES,
            kernel_log_level=0,
        )
        self._handle = library().bpf_object__open_file(str(path).encode(), ctypes.byref(options))
        if not self._handle:
            raise _error(f"bpf_object__open_file {path.name}")

    def load(self) -> None:
        """Loads maps and programs. On refusal the error carries the verifier's last words."""
        result = library().bpf_object__load(self._handle)
        if result < 0:
            lines = [
                line
                for line in self._log.value.decode(errors="replace").splitlines()
                if line and not line.startswith("processed ")
            ]
            if result == -errno.ENOSPC and lines:
                # not the host lacks space: the verifier had more to say than fits into its log
                result = -errno.EACCES
            error = _error(f"bpf_object__load {self.path.name}", -result)
            if lines:
                error.args = (error.args[0], f"{error.args[1]} ({lines[-1]})")
            raise error

    def programs(self) -> Iterator[Program]:
        handle = None
        while handle := library().bpf_object__next_program(self._handle, handle):
            yield Program(handle)

    def program(self, name: str) -> Program:
        for program in self.programs():
            if program.name == name:
                return program
        raise KeyError(name)

    def map_fd(self, name: str) -> int:
        handle = library().bpf_object__find_map_by_name(self._handle, name.encode())
        if not handle:
            raise _error(f"bpf_object__find_map_by_name {name}")
        return _check(library().bpf_map__fd(handle), "bpf_map__fd")

    def set_max_entries(self, name: str, entries: int) -> None:
        """Changes a map's size before the load; does nothing where the object lacks the map."""
        handle = library().bpf_object__find_map_by_name(self._handle, name.encode())
        if not handle:
            return
        _check(library().bpf_map__set_max_entries(handle, entries), "bpf_map__set_max_entries")

    def rodata(self, name: str) -> bytes:
        """The initial value of a read-only section such as `.rodata.config`."""
        start, size = self._rodata(name)
        return ctypes.string_at(start, size)

    def set_rodata(self, name: str, data: bytes) -> None:
        """Replaces the initial value of a read-only section before the object is loaded."""
        start, size = self._rodata(name)
        if size != len(data):
            raise OSError(errno.EINVAL, f"{name} of {self.path.name} has {size} bytes")
        ctypes.memmove(start, data, size)

    def _rodata(self, name: str) -> tuple[int, int]:
        handle = library().bpf_object__find_map_by_name(self._handle, name.encode())
        if not handle:
            raise _error(f"bpf_object__find_map_by_name {name}")
        size = ctypes.c_size_t()
        start = library().bpf_map__initial_value(handle, ctypes.byref(size))
        if not start:
            raise OSError(errno.EINVAL, f"{name} of {self.path.name} has no initial value")
        return start, size.value

    def close(self) -> None:
        if self._handle:
            library().bpf_object__close(self._handle)
            self._handle = None


class Program:
    """A program of an object that is still open."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @property
    def name(self) -> str:
        return str(library().bpf_program__name(self._handle).decode())

    @property
    def section(self) -> str:
        return str(library().bpf_program__section_name(self._handle).decode())

    @property
    def fd(self) -> int:
        return _check(library().bpf_program__fd(self._handle), f"program {self.name}")

    def set_autoload(self, load: bool) -> None:
        _check(library().bpf_program__set_autoload(self._handle, load), "set_autoload")

    def attach(self) -> Link:
        """Attaches a tracepoint, raw tracepoint or iterator by its section name."""
        handle = library().bpf_program__attach(self._handle)
        if not handle:
            raise _error(f"bpf_program__attach {self.name}")
        return Link(handle, self.name)

    def attach_cgroup(self, cgroup_fd: int) -> Link:
        handle = library().bpf_program__attach_cgroup(self._handle, cgroup_fd)
        if not handle:
            raise _error(f"bpf_program__attach_cgroup {self.name}")
        return Link(handle, self.name)

    def attach_map_iterator(self, map_fd: int) -> Link:
        """Attaches an iter/sockmap program to one map (union bpf_iter_link_info is its fd)."""

        class _Opts(ctypes.Structure):
            _fields_ = [("sz", ctypes.c_size_t), ("info", _P), ("len", ctypes.c_uint32)]

        info = ctypes.c_uint32(map_fd)
        options = _Opts(
            sz=ctypes.sizeof(_Opts),
            info=ctypes.cast(ctypes.byref(info), _P),
            len=ctypes.sizeof(info),
        )
        handle = library().bpf_program__attach_iter(self._handle, ctypes.byref(options))
        if not handle:
            raise _error(f"bpf_program__attach_iter {self.name}")
        return Link(handle, self.name)


class Link:
    """An attachment; `destroy` closes it, and what is not pinned is detached by that."""

    def __init__(self, handle: int, name: str) -> None:
        self._handle: int | None = handle
        self.name = name

    @classmethod
    def open(cls, path: Path) -> Link:
        handle = library().bpf_link__open(str(path).encode())
        if not handle:
            raise _error(f"bpf_link__open {path}")
        return cls(handle, path.name)

    @property
    def fd(self) -> int:
        return _check(library().bpf_link__fd(self._handle), "bpf_link__fd")

    def pin(self, path: Path) -> None:
        _check(library().bpf_link__pin(self._handle, str(path).encode()), f"pin {path}")

    def update(self, program_fd: int) -> None:
        """Replaces the program of a cgroup link atomically."""
        _check(library().bpf_link_update(self.fd, program_fd, None), f"bpf_link_update {self.name}")

    def destroy(self) -> None:
        if self._handle:
            library().bpf_link__destroy(self._handle)
            self._handle = None


def run_iterator(link: Link) -> bytes:
    """Runs an iterator program once over its map; returns what it printed."""
    fd = _check(library().bpf_iter_create(link.fd), "bpf_iter_create")
    with os.fdopen(fd, "rb", buffering=0) as stream:
        return stream.read() or b""


def attach_map(program_fd: int, map_fd: int, kind: int) -> None:
    """Makes a program the sk_msg program of a sockhash (replaces one of ours)."""
    _check(library().bpf_prog_attach(program_fd, map_fd, kind, 0), "bpf_prog_attach")


def get_pinned(path: Path) -> int:
    """Opens a pinned map or program; the caller closes the descriptor."""
    return _check(library().bpf_obj_get(str(path).encode()), f"bpf_obj_get {path}")


def _info(fd: int) -> ctypes.Array[ctypes.c_uint32]:
    info = (ctypes.c_uint32 * 64)()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    _check(
        library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)),
        "bpf_obj_get_info_by_fd",
    )
    return info


def object_id(fd: int) -> int:
    """The kernel's id of a program, map or link: `id` follows `type` in all three info structs."""
    return int(_info(fd)[1])


def link_cgroup(fd: int) -> int:
    """The id of the cgroup that a cgroup link is attached to; 0 once it is detached."""
    # struct bpf_link_info: type, id, prog_id, padding, then cgroup.cgroup_id
    low, high = _info(fd)[4:6]
    return int(low) | int(high) << 32


def load_pass(*, name: str) -> int:
    """An sk_msg program that lets everything pass, as a descriptor that the caller closes."""
    code = struct.pack("<BBhi", 0xB7, 0, 0, 1) + struct.pack("<BBhi", 0x95, 0, 0, 0)  # r0 = 1; exit
    loaded = library().bpf_prog_load(16, name.encode(), b"GPL", code, 2, None)
    return _check(loaded, "bpf_prog_load")


def create_sockhash(*, name: str, entries: int) -> int:
    """A sockhash with 64-bit keys and values, as a descriptor that the caller closes."""
    return _check(
        library().bpf_map_create(18, name.encode(), 8, 8, entries, None), "bpf_map_create"
    )


# --- maps -----------------------------------------------------------------------------------


def lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """One value, or None. For per-CPU maps `value_size` is that of all CPUs together."""
    value = ctypes.create_string_buffer(value_size)
    result = library().bpf_map_lookup_elem(fd, key, value)
    if result == -errno.ENOENT:
        return None
    _check(result, "bpf_map_lookup_elem")
    return value.raw


def update(fd: int, key: bytes, value: bytes, *, flags: int = BPF_ANY) -> None:
    _check(library().bpf_map_update_elem(fd, key, value, flags), "bpf_map_update_elem")


def delete(fd: int, key: bytes) -> bool:
    """Removes a key; False when it was not there."""
    result = library().bpf_map_delete_elem(fd, key)
    if result == -errno.ENOENT:
        return False
    _check(result, "bpf_map_delete_elem")
    return True


def keys(fd: int, key_size: int) -> Iterator[bytes]:
    """All keys; entries that appear or vanish meanwhile may be missed."""
    current: bytes | None = None
    while True:
        following = ctypes.create_string_buffer(key_size)
        result = library().bpf_map_get_next_key(fd, current, following)
        if result == -errno.ENOENT:
            return
        _check(result, "bpf_map_get_next_key")
        current = following.raw
        yield current


class RingBuffer:
    """A ring buffer whose records are handed to `on_record` as bytes.

    ctypes swallows exceptions of callbacks: the first one is kept and raised by `consume`.
    """

    def __init__(self, map_fd: int, on_record: Callable[[bytes], None]) -> None:
        self._on_record = on_record
        self._failure: BaseException | None = None
        self._callback = _CB(self._receive)
        self._handle = library().ring_buffer__new(map_fd, self._callback, None, None)
        if not self._handle:
            raise _error("ring_buffer__new")

    def _receive(self, _context: int, data: int, size: int) -> int:
        try:
            self._on_record(ctypes.string_at(data, size))
        except BaseException as failure:
            self._failure = failure
            return -errno.EIO
        return 0

    def consume(self) -> int:
        """Hands over all records that are there; returns how many."""
        count = library().ring_buffer__consume(self._handle)
        if self._failure:
            failure, self._failure = self._failure, None
            raise failure
        return _check(count, "ring_buffer__consume")

    def close(self) -> None:
        if self._handle:
            library().ring_buffer__free(self._handle)
            self._handle = None
