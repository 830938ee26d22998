"""The sections of an ELF file by their names. Stripping tools may have removed them all."""

from __future__ import annotations

from dataclasses import dataclass

from throughline.elf.elf import Elf

_STRTAB = 3
_MAX_NAMES_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Section:
    address: int  # as linked; 0 for a section that is not loaded
    offset: int
    size: int
    flags: int


def named(elf: Elf) -> dict[str, Section]:
    """The first section of each name; empty where the file has no section names."""
    headers = elf.section_headers()
    for names in headers:
        if names[1] != _STRTAB:
            continue
        strings = elf.read(names[4], min(names[5], _MAX_NAMES_BYTES))
        # Other string tables may be there too. The one with the names of sections has its own.
        if strings[names[0] :].startswith(b".shstrtab\0"):
            return _sections(headers, strings)
    return {}


def _sections(headers: list[tuple[int, ...]], strings: bytes) -> dict[str, Section]:
    found: dict[str, Section] = {}
    for name, _, flags, address, offset, size, *_ in headers:
        end = strings.find(b"\0", name)
        if end > name:
            text = strings[name:end].decode("utf-8", "replace")
            found.setdefault(text, Section(address, offset, size, flags))
    return found
