"""Texts that others choose (file names, cgroups, bytes of requests), made fit to leave the agent.

Inside the agent such a text is a `str` in which bytes that are not UTF-8 are surrogates (PEP 383),
so that it still names the file. `utf8` makes it fit for programs (OTLP, JSON), `printable` for a
terminal or the journal.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_ASCII = re.compile("[^\x00-\x7f]")


def utf8(value: str) -> str:
    """`value` as text that can be encoded in UTF-8; a byte that is not UTF-8 becomes U+FFFD."""
    if value.isascii():
        return value
    try:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return _SURROGATE.sub("\ufffd", value)


def printable(value: str) -> str:
    r"""`value` with escapes for characters that move a cursor or begin a line, such as `\x1b`.

    A byte that is not UTF-8 is escaped as well: `\xff`. Letters of any script stay.
    """
    return value if value.isprintable() else "".join(map(_escaped, value))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def to_json(value: Any) -> str:
    """Compact JSON in ASCII, without lone surrogates, which few parsers accept."""
    text = utf8(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    if text.isascii():
        return text
    return _NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1], text)


class Formatter(logging.Formatter):
    """Log lines for the journal: one record is one line; a traceback follows indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return "\n".join(f"  {printable(line)}" for line in super().formatException(ei).split("\n"))
