"""The build information in a Go program: Go's version, the main package, modules, build id.

Formats: debug/buildinfo (in the section .go.buildinfo, or at the start of the data where the
sections have been removed), runtime/debug.ParseBuildInfo, and cmd/internal/buildid for the note.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from throughline.elf import leb128, sections
from throughline.elf.elf import Elf, MalformedError
from throughline.runtimes.go.image import Image
from throughline.runtimes.go.program import UnsupportedError, check_stop

_MAGIC = b"\xff Go buildinf:"
_HEADER_BYTES = 32
_INLINE = 2  # flag: the strings follow, since Go 1.18
_SCAN_BYTES = 1 << 20  # searched of each segment, where there are no sections
_MAX_VERSION_BYTES = 1 << 10
_MAX_INFO_BYTES = 1 << 18  # 600 modules take 60 KB
_FRAME_BYTES = 16  # before and after the module information
_MAX_NOTES_BYTES = 1 << 12
_NOTE = struct.Struct("<III")


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """The parts of the build information that the agent uses."""

    version: str
    path: str
    modules: Mapping[str, str]
    profiled: bool = False  # built with a profile to guide the compiler


def read(image: Image) -> BuildInfo | None:
    """None where it is no Go program. Raises UnsupportedError for Go before 1.18."""
    address = _locate(image)
    if address is None:
        return None
    header = image.exactly(address, _HEADER_BYTES)
    if not header[15] & _INLINE:
        raise UnsupportedError("built by Go before 1.18")
    version, end = _string(image, address + _HEADER_BYTES, _MAX_VERSION_BYTES)
    info, _ = _string(image, end, _MAX_INFO_BYTES)
    if not version:
        return None
    path, modules = _modules(info)
    profiled = b"\nbuild\t-pgo=" in info
    return BuildInfo(_printable(version), path, modules, profiled)


def _locate(image: Image) -> int | None:
    named = sections.named(image.elf)
    if named:
        section = named.get(".go.buildinfo")
        ranges = [(section.address, section.size)] if section else []
    else:
        ranges = [(segment.address, min(segment.size, _SCAN_BYTES)) for segment in image.data]
    for address, size in ranges:
        data = image.read(address, min(size, _SCAN_BYTES)) if size else b""
        at = data.find(_MAGIC)
        while at >= 0:
            if (address + at) % 16 == 0:
                return address + at
            at = data.find(_MAGIC, at + 1)
    return None


def _string(image: Image, address: int, limit: int) -> tuple[bytes, int]:
    """A string that follows its length, and the address where it ends."""
    size, used = leb128.unsigned(image.read(address, leb128.MAX_BYTES))
    if size > limit:
        raise MalformedError(f"build information of {size} bytes")
    start = address + used
    return (image.exactly(start, size) if size else b""), start + size


def _modules(info: bytes) -> tuple[str, dict[str, str]]:
    path, last = "", ""
    modules: dict[str, str] = {}
    for line in info[_FRAME_BYTES:-_FRAME_BYTES].split(b"\n"):
        kind, *fields = map(_printable, line.split(b"\t"))
        if kind == "path" and fields:
            path = fields[0]
        elif kind in ("mod", "dep") and len(fields) > 1:
            last = fields[0]
            modules[last] = fields[1]
        elif kind == "=>" and len(fields) > 1 and last:
            same = fields[0] == last
            modules[last] = fields[1] if same else f"=> {fields[0]} {fields[1]}"
    return path, modules


def _printable(data: bytes) -> str:
    """As text without control characters, which a terminal or a log would obey."""
    text = data.decode("utf-8", "replace")
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def build_id(elf: Elf, stop: threading.Event | None = None) -> str:
    """The GNU build id, else Go's, else a hash of the file."""
    found: dict[tuple[bytes, int], bytes] = {}
    for segment in elf.notes:
        data = elf.read(segment.offset, min(segment.size, _MAX_NOTES_BYTES))
        at = 0
        while at + _NOTE.size <= len(data):
            name_size, size, kind = _NOTE.unpack_from(data, at)
            name_at = at + _NOTE.size
            value_at = name_at + (name_size + 3 & ~3)
            found.setdefault(
                (data[name_at : name_at + name_size], kind), data[value_at : value_at + size]
            )
            at = value_at + (size + 3 & ~3)
    if gnu := found.get((b"GNU\0", 3)):
        return gnu.hex()
    if go := found.get((b"Go\0\0", 4)):
        return _printable(go)
    return f"sha256:{digest(elf, stop)}"


def digest(elf: Elf, stop: threading.Event | None = None) -> str:
    """A hash of the whole file: of all that the analysis reads and that is probed."""
    hashed = hashlib.sha256()
    size = os.fstat(elf.fd).st_size
    for at in range(0, size, 1 << 20):
        check_stop(stop)
        hashed.update(elf.read(at, min(1 << 20, size - at)))
    return hashed.hexdigest()
