"""Small Go binaries, made by hand: a function table, type data, module data and build information.

What only has to be there has no content. Structs are given as their fields, each with its offset
and the struct that it is, "*" for a pointer, or "" for anything else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence

BASE = 0x400000
APART = 0x40  # between functions
FIRST_LINE = 5000  # of the first function; each is on the next line
TEXT_AT, DATA_AT, VARIABLES_AT = 0x1000, 0x2000, 0x9000  # in the file; addresses are BASE higher
TEXT, TABLE = BASE + TEXT_AT, BASE + DATA_AT
FUNCTIONS_DATA = BASE + 0x3000
TYPES = BASE + 0x4000
MODULE = BASE + VARIABLES_AT + 0x800

CHECK = b"\x49\x3b\x66\x10"  # cmp 0x10(%r14),%rsp
JBE = b"\x76\x10"
SMALL = CHECK + JBE

Fields = Sequence[tuple[str, int, str]]

FUNCTIONS: dict[str, bytes] = {"runtime.newproc1": SMALL, "main.main": b"\x55"}
STRUCTS: dict[str, Fields] = {
    "runtime.g": [("goid", 152, ""), ("m", 48, "*")],
    "runtime.m": [("p", 208, ""), ("curg", 192, "*")],
    "runtime.p": [("goidcache", 384, ""), ("goidcacheend", 392, "")],
}


def build(
    version: str = "go1.22.10",
    *,
    functions: Mapping[str, bytes] | None = None,
    twice: str = "",  # a function that is there once more
    structs: Mapping[str, Fields] | None = None,
    info: str = "path\texample.com/main\n",
    inline: bool = True,  # build information as since Go 1.18
    relocated: bool = False,  # pointers as relocations, zeros in their places
    sections: bool = True,
    magic: int = 0xFFFFFFF1,
    inlined: str = "",  # a function that is within another one, too
    pad: int = 0,  # before the function table: found without sections all the same
) -> bytes:
    """The binary's bytes."""
    names = [*(FUNCTIONS if functions is None else functions), *([twice] if twice else [])]
    code = {**FUNCTIONS, **(functions or {})}
    match = re.match(r"go1\.([0-9]+)", version)
    minor = int(match[1]) if match else 22
    image = bytearray(0xA000)
    pointers: dict[int, int] = {}

    def put(at: int, data: bytes) -> None:
        assert at + len(data) <= len(image)
        image[at : at + len(data)] = data

    for number, name in enumerate(names):
        put(TEXT_AT + number * APART, code[name].ljust(APART, b"\xcc"))
    table = TABLE + pad
    functions_at = _put_table(put, table - BASE, names, magic)
    types_end = _put_types(put, pointers, STRUCTS if structs is None else structs, minor)
    words = [0] * 44
    words[0], words[1] = table, table + 72
    words[16], words[17] = functions_at, len(names) + 1
    words[22], words[23] = TEXT, TEXT + len(names) * APART
    at = 35 if minor < 20 else 37
    words[at], words[at + (2 if minor >= 27 else 1)] = TYPES, types_end
    words[at + (6 if minor >= 27 else 3)] = FUNCTIONS_DATA
    if inlined:
        name_at = sum(len(name) + 1 for name in names[: names.index(inlined)])
        record = struct.pack("<iiii", 0, name_at, 17, FIRST_LINE + names.index(inlined))
        put(FUNCTIONS_DATA - BASE + 8, record)
    put(MODULE - BASE, struct.pack("<44Q", *words))
    pointers.update(
        {MODULE + 8 * index: words[index] for index in (0, 1, 16, 22, 23, at) if words[index]}
    )
    put(VARIABLES_AT, _build_info(version, info, inline))
    if relocated:
        for place in pointers:
            put(place - BASE, bytes(8))
    put(0, _header(put, pointers if relocated else {}))
    return _with_sections(image, table) if sections else bytes(image)


def _put_table(put, at: int, names: list[str], magic: int) -> int:  # type: ignore[no-untyped-def]
    """The function table: header, names, pairs, records. Returns the address of the pairs."""
    strings, starts = b"\0".join(name.encode() for name in names) + b"\0", []
    for number in range(len(names)):
        starts.append(sum(len(name) + 1 for name in names[:number]))
    pairs_at = 72 + len(strings) + -len(strings) % 8
    records = (len(names) + 1) * 8
    pairs = b"".join(
        struct.pack("<II", number * APART, records + number * 48) for number in range(len(names))
    )
    pairs += struct.pack("<II", len(names) * APART, 0)
    body = b"".join(
        struct.pack("<II28xI", number * APART, start, FIRST_LINE + number).ljust(48, b"\0")
        for number, start in enumerate(starts)
    )
    header = struct.pack("<IBBBBQQQ", magic, 0, 0, 1, 8, len(names), 0, 0)
    header += struct.pack("<5Q", 72, pairs_at, pairs_at, pairs_at, pairs_at)
    put(at, header + strings.ljust(pairs_at - 72, b"\0") + pairs + body)
    return BASE + at + pairs_at


def _put_types(put, pointers, structs: Mapping[str, Fields], minor: int) -> int:  # type: ignore[no-untyped-def]
    """Descriptors of structs and of pointers to them, and their names. Returns where they end."""
    names_at = TYPES + 0x3000
    known: dict[str, int] = {}

    def name(text: str) -> int:
        nonlocal names_at
        if text not in known:
            known[text] = names_at
            put(names_at - BASE, bytes([0, len(text)]) + text.encode())
            names_at += len(text) + 2
        return known[text]

    def pointer(at: int, value: int) -> None:
        pointers[at] = value
        put(at - BASE, struct.pack("<Q", value))

    places = {owner: TYPES + 0x100 + number * 0x80 for number, owner in enumerate(structs)}
    any_pointer, anything, fields_at = TYPES + 0x40, TYPES + 0x80, TYPES + 0x2000
    put(any_pointer + 23 - BASE, b"\x16")
    put(anything + 23 - BASE, b"\x02")
    for number, (owner, fields) in enumerate(structs.items()):
        at = places[owner]
        string = name("*" + owner.rpartition("/")[2]) - TYPES
        head = struct.pack("<QQIBBBBQQI", 1000, 0, 0, 5, 8, 8, 0x19, 0, 0, string)
        put(at - BASE, head)
        pointer(at + 56, fields_at)
        put(at + 64 - BASE, struct.pack("<QQ", len(fields), len(fields)))
        put(at + 80 - BASE, struct.pack("<I", name(owner.rpartition(".")[0]) - TYPES))
        for field, offset, kind in fields:
            pointer(fields_at, name(field))
            pointer(fields_at + 8, {"*": any_pointer, "": anything}.get(kind) or places[kind])
            put(fields_at + 16 - BASE, struct.pack("<Q", offset << 1 if minor < 19 else offset))
            fields_at += 24
        to_it = TYPES + 0x1000 + number * 0x40
        put(to_it - BASE, struct.pack("<QQIBBBBQQI", 8, 8, 0, 0, 8, 8, 0x36, 0, 0, string))
        pointer(to_it + 48, at)
    return names_at


def _build_info(version: str, info: str, inline: bool) -> bytes:
    framed = b"\x30" * 16 + info.encode() + b"\xf9" * 16 if info else b""
    header = b"\xff Go buildinf:" + bytes([8, 2 if inline else 0]) + bytes(16)
    text = version.encode()
    return header + bytes([len(text)]) + text + _varint(len(framed)) + framed


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


def _header(put, pointers: Mapping[int, int]) -> bytes:  # type: ignore[no-untyped-def]
    """ELF header, segments and, where there are pointers to relocate, a dynamic section."""
    relocations_at, dynamic_at = VARIABLES_AT - 0x1000, VARIABLES_AT + 0x600
    entries = b"".join(struct.pack("<QQq", at, 8, pointers[at]) for at in sorted(pointers))
    put(relocations_at, entries)
    tags = [(7, BASE + relocations_at), (8, len(entries)), (9, 24)] if entries else []
    dynamic = b"".join(struct.pack("<QQ", *tag) for tag in [*tags, (0, 0)])
    put(dynamic_at, dynamic)
    segments = [
        (1, 5, TEXT_AT, DATA_AT - TEXT_AT),
        (1, 4, DATA_AT, VARIABLES_AT - DATA_AT),
        (1, 6, VARIABLES_AT, 0x1000),
        (2, 6, dynamic_at, len(dynamic)),
    ]
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    kind = 3 if pointers else 2
    header += struct.pack(
        "<HHIQQQIHHHHHH", kind, 62, 1, TEXT, 64, 0, 0, 64, 56, len(segments), 64, 0, 0
    )
    for number, flags, at, size in segments:
        header += struct.pack("<IIQQQQQQ", number, flags, at, BASE + at, 0, size, size, 0x1000)
    return header


def _with_sections(image: bytearray, table: int) -> bytes:
    names = b"\0.shstrtab\0.go.buildinfo\0.gopclntab\0"
    at = len(image)
    headers = [bytes(64)]
    for name, kind, address, offset, size in (
        (b".shstrtab", 3, 0, at, len(names)),
        (b".go.buildinfo", 1, BASE + VARIABLES_AT, VARIABLES_AT, 0x600),
        (b".gopclntab", 1, table, table - BASE, 0x1000),
    ):
        place = names.index(name + b"\0")
        headers.append(
            struct.pack("<IIQQQQIIQQ", place, kind, 2, address, offset, size, 0, 0, 0, 0)
        )
    whole = bytearray(image) + names.ljust(64, b"\0")
    struct.pack_into("<Q", whole, 40, len(whole))
    struct.pack_into("<HHH", whole, 58, 64, len(headers), 1)
    return bytes(whole + b"".join(headers))
