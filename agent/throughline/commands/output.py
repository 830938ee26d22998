"""The output of the commands: tables and JSON on standard output, hints on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Sequence

from throughline.text import printable, to_json


def table(
    rows: Iterable[Sequence[str]],
    *,
    head: Sequence[str] = (),
    right: Collection[int] = (),
    widest: int = 1000,
) -> list[str]:
    """The lines of a table. A column is as wide as its widest cell, at most `widest` characters.

    The columns whose numbers are in `right` are aligned at the right. There is no line where there
    is no row.
    """
    cells = [tuple(row) for row in rows]
    if not cells:
        return []
    if head:
        cells.insert(0, tuple(head))
    widths = [min(widest, max(map(len, column))) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def few(names: Sequence[str], *, most: int = 8) -> str:
    """A list of names, or its first names and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def print_json(value: object) -> None:
    """Prints JSON in ASCII, indented."""
    print(json.dumps(json.loads(to_json(value)), indent=2))


def text(lines: Iterable[str]) -> str:
    """Lines for people, in which nothing can move the cursor of a terminal."""
    return "\n".join(map(printable, lines))


def hint(text: str) -> None:
    """Says what to do next."""
    print(f"hint: {text}", file=sys.stderr)
