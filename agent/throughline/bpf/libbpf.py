"""Objects, programs and links of libbpf, one small function per C call.

links.py has the links that libbpf 1.1 cannot make. maps.py has the entries of maps.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from throughline.bpf.prototypes import (
    POINTER,
    LoadOptions,
    OpenOptions,
    RunOptions,
    check,
    failure,
    info,
    library,
)

_LOG_BYTES = (1 << 24) - 1

# enum bpf_prog_type and enum bpf_attach_type (include/uapi/linux/bpf.h)
SK_MSG = 16
SK_MSG_VERDICT = 7
LRU_HASH = 9  # enum bpf_map_type


# --- objects --------------------------------------------------------------------------------


class Object:
    """An open BPF object file. `close` frees it; pins and links stay."""

    def __init__(self, path: Path, *, pin_root: Path) -> None:
        self.path = path
        self._left_out: set[str] = set()
        # The largest log that old kernels take. A page costs memory only once it is written.
        self._log_pages = mmap.mmap(-1, _LOG_BYTES)
        self._log = (ctypes.c_char * _LOG_BYTES).from_buffer(self._log_pages)
        options = OpenOptions(
            sz=ctypes.sizeof(OpenOptions),
            pin_root_path=str(pin_root).encode(),
            kernel_log_buf=ctypes.cast(self._log, ctypes.c_void_p),
            kernel_log_size=_LOG_BYTES,
            kernel_log_level=0,
        )
        self._handle = library().bpf_object__open_file(str(path).encode(), ctypes.byref(options))
        if not self._handle:
            raise failure(f"bpf_object__open_file {path.name}")

    def load(self) -> None:
        """Loads maps and programs. The error of a refusal has the last line of the kernel's log."""
        result = library().bpf_object__load(self._handle)
        if result < 0:
            lines = [
                line
                for line in self._log.value.decode(errors="replace").splitlines()
                if line and not line.startswith("processed ")
            ]
            if result == -errno.ENOSPC and lines:
                # The verifier's log is full. The host does not lack space.
                result = -errno.EACCES
            error = failure(f"bpf_object__load {self.path.name}", -result)
            if lines:
                error.strerror = f"{error.strerror} ({lines[-1]})"
            raise error

    def programs(self) -> Iterator[Program]:
        """All programs except those that were left out."""
        handle = None
        while handle := library().bpf_object__next_program(self._handle, handle):
            program = Program(handle)
            if program.name not in self._left_out:
                yield program

    def leave_out(self, name: str) -> None:
        """Leaves a program out of the load."""
        program = self.program(name)
        check(library().bpf_program__set_autoload(program.handle, False), "set_autoload")
        self._left_out.add(name)

    def program(self, name: str) -> Program:
        for program in self.programs():
            if program.name == name:
                return program
        raise KeyError(name)

    def map_fd(self, name: str) -> int:
        handle = library().bpf_object__find_map_by_name(self._handle, name.encode())
        if not handle:
            raise failure(f"bpf_object__find_map_by_name {name}")
        return check(library().bpf_map__fd(handle), "bpf_map__fd")

    def lru_maps(self) -> dict[str, int]:
        """Sizes of the LRU maps, by name. A full LRU map drops its least recently used entry."""
        found = {}
        handle = None
        while handle := library().bpf_object__next_map(self._handle, handle):
            if library().bpf_map__type(handle) == LRU_HASH:
                name = library().bpf_map__name(handle).decode()
                found[name] = library().bpf_map__max_entries(handle)
        return found

    def set_max_entries(self, name: str, entries: int) -> None:
        """Changes a map's size before the load; does nothing when the object has no such map."""
        handle = library().bpf_object__find_map_by_name(self._handle, name.encode())
        if not handle:
            return
        check(library().bpf_map__set_max_entries(handle, entries), "bpf_map__set_max_entries")

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
            raise failure(f"bpf_object__find_map_by_name {name}")
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
        self.handle = handle

    @property
    def name(self) -> str:
        return str(library().bpf_program__name(self.handle).decode())

    @property
    def section(self) -> str:
        return str(library().bpf_program__section_name(self.handle).decode())

    @property
    def fd(self) -> int:
        return check(library().bpf_program__fd(self.handle), f"program {self.name}")

    def set_expected_attach_type(self, kind: int) -> None:
        """Sets one of enum bpf_attach_type before the load."""
        result = library().bpf_program__set_expected_attach_type(self.handle, kind)
        check(result, "set_expected_attach_type")

    def attach(self) -> Link:
        """Attaches a tracepoint or raw tracepoint by its section name."""
        handle = library().bpf_program__attach(self.handle)
        if not handle:
            raise failure(f"bpf_program__attach {self.name}")
        return Link(handle, self.name)

    def attach_cgroup(self, cgroup_fd: int) -> Link:
        handle = library().bpf_program__attach_cgroup(self.handle, cgroup_fd)
        if not handle:
            raise failure(f"bpf_program__attach_cgroup {self.name}")
        return Link(handle, self.name)


class Link:
    """An attachment of a program. `destroy` closes it; that detaches it unless it is pinned."""

    def __init__(self, handle: int, name: str) -> None:
        self._handle: int | None = handle
        self.name = name

    @classmethod
    def open(cls, path: Path) -> Link:
        handle = library().bpf_link__open(str(path).encode())
        if not handle:
            raise failure(f"bpf_link__open {path}")
        return cls(handle, path.name)

    @property
    def fd(self) -> int:
        return check(library().bpf_link__fd(self._handle), "bpf_link__fd")

    def pin(self, path: Path) -> None:
        check(library().bpf_link__pin(self._handle, str(path).encode()), f"pin {path}")

    def update(self, program_fd: int) -> None:
        """Replaces the program of a cgroup link. No event is missed meanwhile."""
        check(library().bpf_link_update(self.fd, program_fd, None), f"bpf_link_update {self.name}")

    def destroy(self) -> None:
        if self._handle:
            library().bpf_link__destroy(self._handle)
            self._handle = None


def run(program_fd: int, arguments: Sequence[int]) -> None:
    """Runs a raw tracepoint program once, with up to 12 arguments of 64 bits (Linux 5.10)."""

    context = (ctypes.c_uint64 * 12)(*arguments)
    options = RunOptions(
        sz=ctypes.sizeof(RunOptions),
        ctx_in=ctypes.cast(context, POINTER),
        ctx_size_in=ctypes.sizeof(context),
    )
    check(
        library().bpf_prog_test_run_opts(program_fd, ctypes.byref(options)),
        "bpf_prog_test_run_opts",
    )


def attach_map(program_fd: int, map_fd: int, kind: int) -> None:
    """Makes a program the sk_msg program of a sockhash, in place of the one before."""
    check(library().bpf_prog_attach(program_fd, map_fd, kind, 0), "bpf_prog_attach")


def get_pinned(path: Path) -> int:
    """Opens a pinned map or program; the caller closes the descriptor."""
    return check(library().bpf_obj_get(str(path).encode()), f"bpf_obj_get {path}")


def object_id(fd: int) -> int:
    """The kernel's id of a program, map or link."""
    # `id` follows `type` in struct bpf_prog_info, bpf_map_info and bpf_link_info
    return int(info(fd)[1])


def link_cgroup(fd: int) -> int:
    """The id of the cgroup that a cgroup link is attached to; 0 when it is detached."""
    # struct bpf_link_info: type, id, prog_id, padding, then cgroup.cgroup_id
    low, high = info(fd)[4:6]
    return int(low) | int(high) << 32


def load(code: bytes, *, kind: int, name: str, attach_type: int = 0) -> int:
    """Loads a program from its instructions (8 bytes each); the caller closes the descriptor.

    `kind` is one of enum bpf_prog_type, `attach_type` the expected one of enum bpf_attach_type.
    """

    options = LoadOptions(sz=ctypes.sizeof(LoadOptions), expected_attach_type=attach_type)
    count = len(code) // 8
    loaded = library().bpf_prog_load(
        kind, name.encode(), b"GPL", code, count, ctypes.byref(options)
    )
    return check(loaded, f"bpf_prog_load {name}")


def load_constant(value: int, *, kind: int, name: str, attach_type: int = 0) -> int:
    """Loads a program that only returns `value`; see `load`."""
    code = struct.pack("<BBhiBBhi", 0xB7, 0, 0, value, 0x95, 0, 0, 0)  # r0 = value; exit
    return load(code, kind=kind, name=name, attach_type=attach_type)


def load_pass(*, name: str) -> int:
    """Loads an sk_msg program that lets every message pass; the caller closes the descriptor."""
    return load_constant(1, kind=SK_MSG, name=name)
