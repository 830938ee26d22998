"""What must happen to a request on the wire: a reference that shares no code or idea with bpf/.

It looks at whole texts with regular expressions and string methods, where the programs look at one
byte after the other. Where receivers may differ (RFC 9112), it says so, and both is right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

LIMIT = 16384
_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,16}) ([!-~\x80-\xff]+) HTTP/1\.([01])")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_MEMBER = re.compile(r"([a-z0-9][a-z0-9_\-*/@]{0,255})=([ -+\--<>-~]{0,255}[!-+\--<>-~])")


class Insertion(Enum):
    """Whether `traceparent` goes into an outgoing request."""

    MUST = "must"
    MUST_NOT = "must not"
    MAY = "may"


@dataclass(frozen=True, slots=True)
class Request:
    """What a text is, from its first byte on."""

    insertion: Insertion
    at: int  # where the empty line begins, -1: there is none
    in_step: bool  # the message ends where the text ends, beyond doubt
    method: str = ""
    traceparent: tuple[str, str, int] | None = None  # trace id, parent id, flags
    tracestate: str = ""
    doubtful: bool = False  # a receiver may see other headers than we do


def traceparent(values: list[str]) -> tuple[str, str, int] | None:
    """W3C Trace Context Level 2, section 3.2, of all header lines with that name."""
    if len(values) != 1:
        return None
    found = _PARENT.fullmatch(values[0].strip(" \t"))
    if not found:
        return None
    version, trace, parent, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    if not int(trace, 16) or not int(parent, 16):
        return None
    return trace, parent, int(flags, 16) & 3


def tracestate(values: list[str]) -> str:
    """W3C Trace Context Level 2, section 3.3: all lines in order, or nothing."""
    members = [one.strip(" \t") for one in ",".join(values).split(",")]
    members = [one for one in members if one]
    # white space in front of a value belongs to it, that behind it does not
    if len(members) > 32 or not all(_MEMBER.fullmatch(one) for one in members):
        return ""
    found = ",".join(members)
    return found if len(found) <= 512 else ""


def request(text: bytes) -> Request:
    """Judges one request with its body; `text` holds nothing else."""
    start = len(text) - len(text.lstrip(b"\r\n"))
    if start > 8:
        return Request(Insertion.MAY, -1, in_step=False, doubtful=True)
    lines, at = [], start
    while True:
        end = text.find(b"\n", at)
        if end < 0:
            return Request(Insertion.MUST_NOT, -1, in_step=False, doubtful=True)
        line = text[at:end].removesuffix(b"\r")
        if lines and not line:
            break
        lines.append(line)
        at = end + 1
    blank, body = at, end + 1
    first = _LINE.fullmatch(lines[0])
    if not first:
        return Request(Insertion.MUST_NOT, -1, in_step=False, doubtful=True)
    if blank - start > LIMIT - 100:
        return Request(Insertion.MAY, blank, in_step=False, doubtful=True)
    headers: dict[str, list[str]] = {}
    doubtful = b"\r" in b"".join(lines)
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name):
            doubtful = True
        if colon:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    method = first[1].decode()
    framed, sure = _framing(headers, text[body:], minor=int(first[3]))
    parents = headers.get("traceparent", [])
    states = headers.get("tracestate", [])
    if parents or states or method == "CONNECT":
        insertion = Insertion.MUST_NOT
    elif doubtful or not sure or _near_limits(blank - start, len(lines[0]), len(lines) - 1):
        insertion = Insertion.MAY
    else:
        insertion = Insertion.MUST
    parent = traceparent(parents)
    return Request(
        insertion,
        blank,
        in_step=framed and sure and not doubtful,
        method=method,
        traceparent=parent,
        tracestate=tracestate(states) if parent else "",
        doubtful=doubtful,
    )


def _near_limits(size: int, first: int, fields: int) -> bool:
    """Might a server refuse it with our lines? Exactly where, test_limits.py says; here widely."""
    least = size - first - 4 * fields - 8
    most = size + 70 + 14 + 512 + 4 * fields + 100
    return 98 <= fields <= 100 or any(least <= limit <= most for limit in (8192, 15360, 16384))


def _framing(headers: dict[str, list[str]], body: bytes, *, minor: int) -> tuple[bool, bool]:
    """Is `body` exactly one body, and is there no doubt about its framing? (RFC 9112, section 6)"""
    codings = headers.get("transfer-encoding")
    lengths = {one.strip(" \t") for one in headers.get("content-length", [])}
    if codings is not None:
        names = [one.strip(" \t").lower() for one in ",".join(codings).split(",")]
        sure = names[-1] == "chunked" and "" not in names and not lengths and minor == 1
        sure = sure and all(_NAME.fullmatch(one.encode("latin-1")) for one in names)
        return _chunked(body), sure
    if not lengths:
        return not body, True
    (one, *others) = lengths
    if others or not one.isascii() or not one.isdigit() or len(one) > 15:
        return False, False
    return len(body) == int(one), True


def _chunked(body: bytes) -> bool:
    at = 0
    while True:
        line = re.compile(rb"([0-9A-Fa-f]{1,12})(?:[^0-9A-Fa-f\n][^\n]*)?\n").match(body, at)
        if not line:
            return False
        size = int(line[1], 16)
        at = line.end()
        if not size:
            break
        end = re.compile(rb"\r?\n").match(body, at + size)
        if not end:
            return False
        at = end.end()
    trailer = re.compile(rb"(?:[^\r\n][^\n]*\n)*\r?\n").match(body, at)
    return bool(trailer) and trailer.end() == len(body)
