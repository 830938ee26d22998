"""The release's own CPython, with the C library and the loader that it runs with.

All of it is of Debian's stable release, so that a host's own Python, OpenSSL and glibc do not
matter: docs/decisions/0025-own-interpreter.md. In a release:

    bin/python                 starts the loader with the interpreter, and passes on its arguments
    lib/runtime/throughline    the loader: its name is that of the process
    lib/runtime/python3        the interpreter
    lib/runtime/*.so*          the libraries of both
    lib/python3.13/            the standard library
    lib/*.so.1                 libbpf and the libraries that it needs
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from bundle import debian

VERSION = (3, 13)  # of Debian's release SUITE
SUITE = "trixie"
# by the kernel's name
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # Debian's name
TRIPLETS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}

_DOTTED = ".".join(map(str, VERSION))
_STANDARD = f"usr/lib/python{_DOTTED}/"

# The libraries of the interpreter, and which package has each.
RUNTIME_LIBRARIES = {
    "libc.so.6": "libc6",
    "libm.so.6": "libc6",
    "libdl.so.2": "libc6",
    "libpthread.so.0": "libc6",
    "librt.so.1": "libc6",
    "libgcc_s.so.1": "libgcc-s1",  # the C library loads it where a thread ends early
    "libssl.so.3": "libssl3t64",
    "libcrypto.so.3": "libssl3t64",
    "libexpat.so.1": "libexpat1",
    "libstdc++.so.6": "libstdc++6",  # of gRPC
    "libffi.so.8": "libffi8",
    "libz.so.1": "zlib1g",
    "libzstd.so.1": "libzstd1",
}
# libbpf and the libraries that it needs, in the order of loading.
BPF_LIBRARIES = {"libz.so.1": "zlib1g", "libelf.so.1": "libelf1t64", "libbpf.so.1": "libbpf1"}

_PYTHON = (f"python{_DOTTED}-minimal", f"libpython{_DOTTED}-minimal", f"libpython{_DOTTED}-stdlib")
PACKAGES = tuple(sorted({*_PYTHON, *RUNTIME_LIBRARIES.values(), *BPF_LIBRARIES.values()}))

# Of the standard library what an agent never imports: tools, tests, windows, databases.
_UNUSED = re.compile(
    r"(test|idlelib|tkinter|turtledemo|ensurepip|venv|lib2to3|pydoc_data|unittest|sqlite3|curses|dbm"
    r"|wsgiref|_pyrepl|__phello__|xmlrpc)/"
    r"|(turtle|pydoc|doctest|pdb|cProfile|profile|pstats|mailbox|this|antigravity)\.py$"
    r"|(sitecustomize|_sysconfigdata_[^/]*)\.py$"
)
# Compiled modules that are used, apart from those in the interpreter itself.
_MODULES = (
    *("_asyncio", "_contextvars", "_ctypes", "_hashlib", "_multiprocessing", "_queue", "_ssl"),
    *("mmap", "resource", "termios"),
)
_MODULE = re.compile(rf"lib-dynload/({'|'.join(_MODULES)})\.cpython-[^/]+\.so")


def collect(arch: str, folder: Path) -> dict[str, bytes]:
    """The files by their path in a release. Raises what bundle.debian raises."""
    packages = debian.fetch(ARCHITECTURES[arch], folder)
    if missing := [name for name in PACKAGES if name not in packages]:
        raise LookupError(f"debian.lock lacks {', '.join(missing)}: write it again")
    libraries = f"usr/lib/{TRIPLETS[arch]}"
    files = {
        "lib/runtime/throughline": debian.file(packages["libc6"], f"{libraries}/{LOADERS[arch]}"),
        "lib/runtime/python3": debian.file(packages[_PYTHON[0]], f"usr/bin/python{_DOTTED}"),
    }
    for name, package in RUNTIME_LIBRARIES.items():
        files[f"lib/runtime/{name}"] = debian.file(packages[package], f"{libraries}/{name}")
    for name, package in BPF_LIBRARIES.items():
        files[f"lib/{name}"] = debian.file(packages[package], f"{libraries}/{name}")
    for package in _PYTHON[1:]:
        files |= dict(_standard_library(packages[package]))
    for package, content in packages.items():
        files |= dict(_licence(package, content))
    return files


def _standard_library(package: bytes) -> Iterator[tuple[str, bytes]]:
    for path, content in debian.members(package):
        if not path.startswith(_STANDARD):
            continue
        name = path.removeprefix(_STANDARD)
        used = name.endswith(".py") and not _UNUSED.match(name)
        if used or _MODULE.fullmatch(name):
            yield f"lib/python{_DOTTED}/{name}", content


def _licence(package: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """What is owed to a package's authors. Some refer to another package of the same source."""
    for path, text in debian.members(content):
        if PurePosixPath(path).name == "copyright":
            yield f"lib/licenses/{package}.txt", text
