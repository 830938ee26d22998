"""Small ELF files, made by hand: functions 256 bytes apart, symbols in one of three tables."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from throughline.elf import elf

BASE = 0x400000
TEXT_ADDRESS, TEXT_OFFSET = 0x412000, 0x2000  # so that no offset is an address less BASE
APART = 0x100

PUSH = b"\x55\xc3"
SUB = b"\x48\x83\xec\x18\xc3"
ENDBR64 = b"\xf3\x0f\x1e\xfa"
TEST_RDI = b"\x48\x85\xff"
JE = b"\x0f\x84\x10\x00\x00\x00\xc3"


def call(code: bytes, *, here: int, there: int, jump: bool = False) -> bytes:
    """`code`, followed by a call from the function number `here` to the number `there`."""
    distance = (there - here) * APART - len(code) - 5
    return code + (b"\xe9" if jump else b"\xe8") + struct.pack("<i", distance) + b"\xc3"


def build(
    functions: Mapping[str, bytes], *, table: str = "gnu", static: bool = False, machine: int = 62
) -> bytes:
    """A shared object. Names that begin with a dot get no symbol; `static`: .symtab instead."""
    names = [name for name in functions if not name.startswith(".")]
    if table == "gnu":
        # one bucket: chains need no order
        names.sort()
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    symbols = bytes(24)
    for name in names:
        index = list(functions).index(name)
        at = strings.index(b"\0" + name.encode() + b"\0") + 1
        address = TEXT_ADDRESS + index * APART
        symbols += struct.pack("<IBBHQQ", at, 0x12, 0, 1, address, len(functions[name]))
    text = b"".join(code.ljust(APART, b"\xcc") for code in functions.values())

    parts: dict[str, int] = {}
    body = bytearray(64 + 3 * 56)

    def add(name: str, data: bytes) -> None:
        body.extend(bytes(-len(body) % 8))
        parts[name] = len(body)
        body.extend(data)

    add("strings", strings)
    add("symbols", symbols)
    add("hash", _gnu(names) if table == "gnu" else _sysv(names))
    tags = [(5, BASE + parts["strings"]), (6, BASE + parts["symbols"]), (10, len(strings))]
    if table != "none":
        tags.append((0x6FFFFEF5 if table == "gnu" else 4, BASE + parts["hash"]))
    if static:
        tags = []
    add("dynamic", b"".join(struct.pack("<QQ", *tag) for tag in [*tags, (0, 0)]))
    dynamic_size = len(body) - parts["dynamic"]
    assert len(body) <= TEXT_OFFSET
    first_size = len(body)
    body.extend(bytes(TEXT_OFFSET - len(body)))
    body.extend(text)
    sections = 0
    if static:
        add("sections", bytes(64))
        body += _section(2, parts["symbols"], len(symbols), link=2)
        body += _section(3, parts["strings"], len(strings), link=0)
        sections = parts["sections"]
    struct.pack_into(
        "<16sHHIQQQIHHHHHH",
        *(body, 0, b"\x7fELF\x02\x01\x01", 3, machine, 1, 0, 64, sections, 0),
        *(64, 56, 3, 64, 3 if static else 0, 0),
    )
    segments = (
        (1, 4, 0, BASE, first_size),
        (1, 5, TEXT_OFFSET, TEXT_ADDRESS, len(text)),
        (2, 4, parts["dynamic"], BASE + parts["dynamic"], dynamic_size),
    )
    for number, (kind, flags, offset, address, size) in enumerate(segments):
        place = 64 + number * 56
        struct.pack_into(
            "<IIQQQQQQ", body, place, kind, flags, offset, address, address, size, size, 0x1000
        )
    return bytes(body)


def _section(kind: int, offset: int, size: int, *, link: int) -> bytes:
    return struct.pack("<IIQQQQIIQQ", 0, kind, 0, 0, offset, size, link, 0, 8, 24)


def _gnu(names: list[str]) -> bytes:
    hashes = [elf.gnu_hash(name.encode()) for name in names]
    bloom = 0
    for value in hashes:
        bloom |= 1 << value % 64 | 1 << (value >> 6) % 64
    chain = [value & ~1 | (value is hashes[-1]) for value in hashes]
    return struct.pack(f"<IIIIQI{len(chain)}I", 1, 1, 1, 6, bloom, 1 if names else 0, *chain)


def _sysv(names: list[str]) -> bytes:
    # one bucket, each symbol leads to the next
    chain = [0, *range(2, len(names) + 1), 0]
    return struct.pack(f"<III{len(chain)}I", 1, len(chain), 1 if names else 0, *chain)


def libssl(begin: bytes = SUB) -> dict[str, bytes]:
    """Functions as in Debian's libssl: SSL_read and SSL_read_ex call one that begins with push."""
    start = begin[:4]
    return {
        "SSL_read": call(start, here=0, there=2),
        "SSL_read_ex": call(start, here=1, there=2),
        ".ssl_read_internal": PUSH,
        "SSL_write": call(start, here=3, there=5),
        "SSL_write_ex": call(start, here=4, there=5),
        ".ssl_write_internal": PUSH,
        "SSL_free": TEST_RDI + JE,
    }
