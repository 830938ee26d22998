"""A trace as a tree on the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from tests.fixtures.spans import Span, walk


def lines(spans: Iterable[Span]) -> list[str]:
    """One line for each span of one trace, from its service to the evidence for its parent."""
    rows = [
        (
            f"{'  ' * depth}{'└ ' if depth else ''}{span.service}",
            span.kind,
            span.scheme,
            f"{span.method} {span.path}"[:56],
            str(span.status) if span.status is not None else "no answer",
            f"{span.milliseconds:.2f} ms",
            span.evidence,
        )
        for span, depth in walk(spans)
    ]
    width = [max((len(row[column]) for row in rows), default=0) for column in range(6)]
    return [
        f"{row[0]:{width[0]}}  {row[1]:{width[1]}}  {row[2]:{width[2]}}  "
        f"{row[3]:{width[3]}}  {row[4]:{width[4]}}  {row[5]:>{width[5]}}  {row[6]}".rstrip()
        for row in rows
    ]
