"""Finds libbpf.so, declares its functions and structs, and turns errno into OSError.

libbpf 1.x is required: its functions return NULL and set errno. $THROUGHLINE_LIBDIR (the library
of the bundle) comes before the library of the system.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

POINTER = ctypes.c_void_p
RECORD_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class OpenOptions(ctypes.Structure):
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


class LoadOptions(ctypes.Structure):
    """struct bpf_prog_load_opts up to expected_attach_type (libbpf 1.0)."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
    ]


class RunOptions(ctypes.Structure):
    """struct bpf_test_run_opts (libbpf 1.0)."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", POINTER),
        ("data_out", POINTER),
        ("data_sizes", ctypes.c_uint32 * 2),
        ("ctx_in", POINTER),
        ("ctx_out", POINTER),
        ("ctx_size_in", ctypes.c_uint32),
        ("rest", ctypes.c_uint32 * 7),
    ]


class TcHook(ctypes.Structure):
    """struct bpf_tc_hook (libbpf 0.6)."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("ifindex", ctypes.c_int),
        ("attach_point", ctypes.c_int),
        ("parent", ctypes.c_uint32),
    ]


class TcOptions(ctypes.Structure):
    """struct bpf_tc_opts (libbpf 0.6)."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("prog_fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
    ]


_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "bpf_object__open_file": (POINTER, (ctypes.c_char_p, POINTER)),
    "bpf_object__load": (ctypes.c_int, (POINTER,)),
    "bpf_object__close": (None, (POINTER,)),
    "bpf_object__next_program": (POINTER, (POINTER, POINTER)),
    "bpf_object__find_map_by_name": (POINTER, (POINTER, ctypes.c_char_p)),
    "bpf_program__name": (ctypes.c_char_p, (POINTER,)),
    "bpf_program__section_name": (ctypes.c_char_p, (POINTER,)),
    "bpf_program__fd": (ctypes.c_int, (POINTER,)),
    "bpf_program__set_expected_attach_type": (ctypes.c_int, (POINTER, ctypes.c_int)),
    "bpf_program__set_autoload": (ctypes.c_int, (POINTER, ctypes.c_bool)),
    "bpf_program__attach": (POINTER, (POINTER,)),
    "bpf_program__attach_cgroup": (POINTER, (POINTER, ctypes.c_int)),
    "bpf_link__fd": (ctypes.c_int, (POINTER,)),
    "bpf_link__pin": (ctypes.c_int, (POINTER, ctypes.c_char_p)),
    "bpf_link__destroy": (ctypes.c_int, (POINTER,)),
    "bpf_link__open": (POINTER, (ctypes.c_char_p,)),
    "bpf_link_update": (ctypes.c_int, (ctypes.c_int, ctypes.c_int, POINTER)),
    "bpf_prog_attach": (ctypes.c_int, (*(ctypes.c_int,) * 3, ctypes.c_uint)),
    "bpf_prog_load": (
        ctypes.c_int,
        (ctypes.c_int, *(ctypes.c_char_p,) * 3, ctypes.c_size_t, POINTER),
    ),
    "bpf_object__next_map": (POINTER, (POINTER, POINTER)),
    "bpf_map__name": (ctypes.c_char_p, (POINTER,)),
    "bpf_map__type": (ctypes.c_int, (POINTER,)),
    "bpf_map__max_entries": (ctypes.c_uint32, (POINTER,)),
    "bpf_map__fd": (ctypes.c_int, (POINTER,)),
    "bpf_map__initial_value": (POINTER, (POINTER, ctypes.POINTER(ctypes.c_size_t))),
    "bpf_map__set_max_entries": (ctypes.c_int, (POINTER, ctypes.c_uint32)),
    "bpf_map_create": (
        ctypes.c_int,
        (ctypes.c_int, ctypes.c_char_p, *(ctypes.c_uint32,) * 3, POINTER),
    ),
    "bpf_map_lookup_elem": (ctypes.c_int, (ctypes.c_int, POINTER, POINTER)),
    "bpf_map_update_elem": (ctypes.c_int, (ctypes.c_int, POINTER, POINTER, ctypes.c_uint64)),
    "bpf_map_delete_elem": (ctypes.c_int, (ctypes.c_int, POINTER)),
    "bpf_map_lookup_and_delete_elem": (ctypes.c_int, (ctypes.c_int, POINTER, POINTER)),
    "bpf_map_lookup_batch": (
        ctypes.c_int,
        (ctypes.c_int, *(POINTER,) * 4, ctypes.POINTER(ctypes.c_uint32), POINTER),
    ),
    "bpf_map_get_next_key": (ctypes.c_int, (ctypes.c_int, POINTER, POINTER)),
    "bpf_prog_test_run_opts": (ctypes.c_int, (ctypes.c_int, POINTER)),
    "bpf_obj_get": (ctypes.c_int, (ctypes.c_char_p,)),
    "bpf_obj_pin": (ctypes.c_int, (ctypes.c_int, ctypes.c_char_p)),
    "bpf_obj_get_info_by_fd": (
        ctypes.c_int,
        (ctypes.c_int, POINTER, ctypes.POINTER(ctypes.c_uint32)),
    ),
    "bpf_tc_hook_create": (ctypes.c_int, (POINTER,)),
    "bpf_tc_hook_destroy": (ctypes.c_int, (POINTER,)),
    "bpf_tc_attach": (ctypes.c_int, (POINTER, POINTER)),
    "bpf_tc_detach": (ctypes.c_int, (POINTER, POINTER)),
    "ring_buffer__new": (POINTER, (ctypes.c_int, RECORD_CALLBACK, POINTER, POINTER)),
    "ring_buffer__consume": (ctypes.c_int, (POINTER,)),
    "ring_buffer__free": (None, (POINTER,)),
    "libbpf_set_print": (POINTER, (POINTER,)),
    "libbpf_num_possible_cpus": (ctypes.c_int, ()),
}


@cache
def library() -> ctypes.CDLL:
    """Loads libbpf and declares its functions. Raises OSError when it is missing or too old."""
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


def failure(call: str, code: int | None = None) -> OSError:
    """The error `code`, or else errno, as an exception that names the call."""
    number = code if code is not None else ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


def check(result: int, call: str) -> int:
    """Returns the result of a call; raises OSError when it is a negated errno."""
    if result < 0:
        raise failure(call, -result)
    return result


def info(fd: int) -> ctypes.Array[ctypes.c_uint32]:
    """The first 64 words of 32 bits of struct bpf_prog_info, bpf_map_info or bpf_link_info."""
    words = (ctypes.c_uint32 * 64)()
    size = ctypes.c_uint32(ctypes.sizeof(words))
    check(
        library().bpf_obj_get_info_by_fd(fd, ctypes.byref(words), ctypes.byref(size)),
        "bpf_obj_get_info_by_fd",
    )
    return words
