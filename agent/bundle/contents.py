"""The files of a release (path to content): from the tree, the wheels and the system."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from bundle import wheels

# libbpf and the libraries that it needs, in the order of loading, with their Debian packages.
NATIVE_LIBRARIES = (("libz.so.1", "zlib1g"), ("libelf.so.1", "libelf1"), ("libbpf.so.1", "libbpf1"))
LIBRARY_FOLDERS = (Path("/usr/lib/x86_64-linux-gnu"), Path("/lib/x86_64-linux-gnu"))

# The newest glibc that a host must have: RHEL 9 and Ubuntu 22.04 have 2.34 and 2.35.
GLIBC_LIMIT = (2, 34)

GRPC_EXTENSION = re.compile(r"grpc/_cython/cygrpc\.cpython-(\d+)-x86_64-linux-gnu\.so")

# Compiled accelerators for one version of Python each. The packages work without them.
ACCELERATORS = ("charset_normalizer/", "yaml/")

# Of a package's metadata only what is owed to its authors.
METADATA = re.compile(r"[^/]+\.dist-info/(METADATA|licenses/.+|LICENSE.*)")


def agent_package(sources: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(sources.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"lib/python/{path.relative_to(sources.parent)}", path.read_bytes()


def python_packages(
    paths: Iterable[Path],
) -> tuple[dict[str, bytes], dict[str, tuple[str, bytes]]]:
    """The common packages, and per Python version ("cp311") the gRPC extension's (path, content).

    Raises ValueError for a compiled module that the rules above do not name, and when two wheels
    of one package disagree about a file that they share.
    """
    common: dict[str, bytes] = {}
    extensions: dict[str, tuple[str, bytes]] = {}
    for wheel in paths:
        for name, content in wheels.members(wheel):
            path = f"lib/python/{name}"
            if match := GRPC_EXTENSION.fullmatch(name):
                extensions[f"cp{match[1]}"] = (path, content)
            elif ".dist-info/" in name and not METADATA.fullmatch(name):
                continue
            elif name.endswith(".so") and not name.endswith(".abi3.so"):
                if not name.startswith(ACCELERATORS):
                    raise ValueError(f"{wheel.name}: {name} serves one Python version only")
            elif common.setdefault(path, content) != content:
                raise ValueError(f"{wheel.name}: {name} differs between the wheels")
    return common, extensions


def native_libraries() -> Iterator[tuple[str, bytes]]:
    """libbpf, the libraries that it needs, and their licences. Raises LookupError without one."""
    for library, package in NATIVE_LIBRARIES:
        for folder in LIBRARY_FOLDERS:
            if (folder / library).exists():
                yield f"lib/{library}", (folder / library).read_bytes()
                break
        else:
            raise LookupError(f"{library} is not installed: run `make setup`")
        yield (
            f"lib/licenses/{package}.txt",
            Path("/usr/share/doc", package, "copyright").read_bytes(),
        )


def needed_glibc(content: bytes) -> tuple[int, ...]:
    """The newest glibc symbol version that a shared object names, (0,) for none."""
    versions = re.findall(rb"\0GLIBC_([0-9.]+)(?=\0)", content)
    return max((tuple(map(int, version.split(b"."))) for version in versions), default=(0,))
