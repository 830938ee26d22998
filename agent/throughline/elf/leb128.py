"""Numbers of variable length: unsigned LEB128, which Go's encoding/binary calls uvarint."""

from __future__ import annotations

from throughline.elf.elf import MalformedError

MAX_BYTES = 10  # of a number of 64 bits


def unsigned(data: bytes) -> tuple[int, int]:
    """The number at the start of `data`, and how many bytes it takes.

    Raises MalformedError where the number does not end within ten bytes.
    """
    value = 0
    for at, byte in enumerate(data[:MAX_BYTES]):
        value |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            return value, at + 1
    raise MalformedError("a number has no end")
