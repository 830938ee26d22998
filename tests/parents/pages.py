"""docs/parents.json, and the page and the picture that are made from it.

python -m tests.parents.pages     # writes the page and the picture anew
"""

from __future__ import annotations

import json
import os
import platform
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.fixtures.paths import CHECKOUT
from tests.parents import picture
from tests.parents.app import App, Behaviour
from tests.parents.apps import APPS
from tests.parents.judge import Result
from tests.parents.picture import Row, percent
from tests.parents.report import Grid

DOCS = CHECKOUT / "docs"
DATA = Path("parents.json")  # these are below DOCS, or wherever the run writes
PAGE = Path("parents.md")
PICTURE = Path("images/parents.svg")
ENOUGH = 0.999  # the share of right parents that is the aim


def write(grid: Grid, *, output: Path) -> None:
    """Replaces the rows that were measured now, and keeps those of applications that still are."""
    file = output / DATA
    rows = json.loads(file.read_text())["rows"] if file.exists() else ()
    kept = {row["name"]: row for row in rows}
    day = time.strftime("%Y-%m-%d", time.gmtime())
    for name, cells in grid.cells.items():
        if name not in grid.broken:
            kept[name] = _row(grid.rows[name], cells, day)
    rows = [kept[app.name] for app in APPS if app.name in kept]
    file.write_text(_json({"kernel": platform.release(), "processors": os.cpu_count()}, rows))
    render(output)


def _row(app: App, cells: Mapping[Behaviour, Sequence[Result]], day: str) -> dict[str, Any]:
    return {
        "name": app.name,
        "runtime": app.runtime,
        "title": app.title,
        "measured": day,
        "cells": {
            behaviour.value: [result.json() for result in results]
            for behaviour, results in cells.items()
        },
    }


def _json(head: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """A line for each result, so that a difference can be read."""
    lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    shown = []
    for row in rows:
        cells = [
            f"   {json.dumps(name)}: [\n    "
            + ",\n    ".join(json.dumps(result) for result in results)
            + "]"
            for name, results in row["cells"].items()
        ]
        plain = json.dumps({name: value for name, value in row.items() if name != "cells"})
        shown.append(f'  {plain[:-1]}, "cells": {{\n' + ",\n".join(cells) + "}}")
    return "\n".join(("{", *lines, ' "rows": [', ",\n".join(shown), "]}", ""))


def render(output: Path = DOCS) -> None:
    """Writes the page and the picture from the JSON."""
    for file, content in rendered(json.loads((output / DATA).read_text())).items():
        (output / file).parent.mkdir(exist_ok=True)
        (output / file).write_text(content)


def rendered(data: Mapping[str, Any]) -> dict[Path, str]:
    """What the page and the picture hold for the JSON."""
    rows = data["rows"]
    title = f"Parents of outgoing calls, Linux {data['kernel']}"
    lines = [wrapped for line in _page(data, rows) for wrapped in _wrap(line)]
    return {PICTURE: picture.svg(rows, title=title), PAGE: "\n".join(lines)}


def _wrap(line: str) -> list[str]:
    """Prose in lines of 120; tables, headings and pictures as they are."""
    if not line or line[0] in "|#!":
        return [line]
    return textwrap.wrap(line, 120, break_long_words=False, break_on_hyphens=False)


def _cells(rows: Sequence[Row], concurrent: int) -> Iterator[tuple[Row, str, Mapping[str, Any]]]:
    for row in rows:
        for behaviour, results in row["cells"].items():
            for result in results:
                if result["concurrent"] == concurrent:
                    yield row, behaviour, result


def _page(data: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    found = [result for _, _, result in _cells(rows, 32)]
    everything = [one for row in rows for cell in row["cells"].values() for one in cell]
    right = sum(result["right"] >= ENOUGH * result["calls"] for result in found)
    wrong = [result for result in everything if result["wrong"]]
    days = sorted({row["measured"] for row in rows})
    lines = [
        "# How often parents are right",
        "",
        f"{len(rows)} applications, {len(found)} cells with 32 requests at a time: in {right} of"
        f" them at least {100 * ENOUGH:.1f} % of the calls have the right parent."
        f" {_wrong_words(wrong, everything)}",
        "",
        f"Written by `make bench-parents` on {', '.join(days)}, Linux {data['kernel']},"
        f" {data['processors']} processors, with [`propagation.parents: proven`]"
        "(operator/propagation.md#proven-and-likely), the default. Everything that was counted is"
        " in [parents.json](parents.json); how it is judged, and how to add an application:"
        " [tests/parents](../tests/parents/README.md).",
        "",
        *_missing(rows),
        "![The grid: a row for each application, a column for each behaviour](images/parents.svg)",
        "",
        "*right*: the client span's parent is the server span of the request that the call was"
        " made for; for a call after the answer, and for the calls of a poller: no parent. *none*:"
        " the call starts a trace of its own. *wrong*: anything else.",
        "",
        *_behaviours(),
    ]
    for concurrent in (32, 8, 1):
        lines += _table(rows, concurrent)
    lines += _wrongs(rows)
    lines += _nones(rows)
    lines += _headers(rows)
    lines += _evidence(rows)
    return [*lines, ""]


def _missing(rows: Sequence[Row]) -> list[str]:
    """Says which applications are not on the page."""
    measured = {row["name"] for row in rows}
    left = [app.title for app in APPS if app.name not in measured]
    return [f"Not measured since the last change: {'; '.join(left)}.", ""] if left else []


def _wrong_words(wrong: Sequence[Mapping[str, Any]], all_of: Sequence[Mapping[str, Any]]) -> str:
    calls = sum(result["calls"] for result in all_of)
    if not wrong:
        return f"No parent of {calls:,} calls was wrong, 1, 8 and 32 requests at a time."
    many = sum(result["wrong"] for result in wrong)
    return (
        f"Of {calls:,} calls {many:,} had a wrong parent, in {len(wrong)} of {len(all_of)}"
        " cells: [below](#wrong-parents)."
    )


def _behaviours() -> list[str]:
    said = {
        Behaviour.AT_ONCE: "the handler calls at once",
        Behaviour.SLEEP: "it sleeps for 10 ms before",
        Behaviour.DATABASE: "it asks Redis before, through a pool of four connections",
        Behaviour.TWO: "two calls at the same time",
        Behaviour.POOL: "another thread, or another task that takes work from a queue, calls",
        Behaviour.AFTER: "it answers, and calls up to 10 ms later",
        Behaviour.BODY: "two of three requests have a body, large or in small parts",
        Behaviour.POLLER: "a background task calls every 20 ms beside; its calls count too",
    }
    return ["| behaviour | |", "|---|---|", *(f"| {b.value} | {s} |" for b, s in said.items())]


def _table(rows: Sequence[Row], concurrent: int) -> list[str]:
    names = [behaviour.value for behaviour in Behaviour]
    at_a_time = "one request" if concurrent == 1 else f"{concurrent} requests"
    lines = [
        "",
        f"## {at_a_time.capitalize()} at a time",
        "",
        "right / wrong / none in percent of the calls; one number: the rest is none.",
        "",
        f"| | {' | '.join(names)} |",
        f"|---|{'--:|' * len(names)}",
    ]
    runtime = ""
    for row in rows:
        if row["runtime"] != runtime:
            runtime = row["runtime"]
            lines.append(f"| **{runtime}** |{' |' * len(names)}")
        cells = {name: one for _, name, one in _cells([row], concurrent)}
        shown = (_shown(cells[name]) if name in cells else "" for name in names)
        lines.append(f"| {row['title']} | {' | '.join(shown)} |")
    return lines


def _shown(result: Mapping[str, Any]) -> str:
    shares = [percent(result[name], result["calls"]) for name in ("right", "wrong", "none")]
    return f"**{' / '.join(shares)}**" if result["wrong"] else shares[0]


def _wrongs(rows: Sequence[Row]) -> list[str]:
    lines = ["", "## Wrong parents", ""]
    found = []
    for concurrent in (1, 8, 32):
        for row, behaviour, result in _cells(rows, concurrent):
            if result["wrong"]:
                kinds = ", ".join(
                    f"{name.removeprefix('wrong by ')} {total}"
                    for name, total in result["evidence"].items()
                    if name.startswith("wrong")
                )
                found.append(
                    f"| {row['title']} | {behaviour} | {concurrent} |"
                    f" {result['wrong']} of {result['calls']} | {kinds} |"
                )
    if not found:
        return [*lines, "None in this run."]
    return [
        *lines,
        "| | behaviour | at a time | wrong | by evidence |",
        "|---|---|--:|--:|---|",
        *found,
    ]


def _nones(rows: Sequence[Row]) -> list[str]:
    lines = [
        "",
        "## Why there is no parent",
        "",
        "32 requests at a time, what the [counters](reference/counters.md) say. Calls of a poller"
        " are counted with them: they have no parent by design.",
        "",
        "| | behaviour | none | counters |",
        "|---|---|--:|---|",
    ]
    for row, behaviour, result in _cells(rows, 32):
        if result["none"] > (1 - ENOUGH) * result["calls"]:
            reasons = [f"`{name}` {total}" for name, total in result.get("reasons", {}).items()]
            if result["unseen"]:
                reasons.append(f"no span of the call: {result['unseen']}")
            lines.append(
                f"| {row['title']} | {behaviour} | {result['none']} of {result['calls']}"
                f" | {', '.join(reasons)} |"
            )
    return (
        lines
        if len(lines) > 7
        else [*lines[:3], "Every call of this run has one, or is to have none."]
    )


def _headers(rows: Sequence[Row]) -> list[str]:
    found = []
    for row in rows:
        results = [result for _, _, result in _cells([row], 32)]
        calls = sum(result["calls"] for result in results)
        without = sum(result["no_header"] for result in results)
        if without > (1 - ENOUGH) * calls:
            found.append(f"| {row['title']} | {percent(without, calls)} |")
    if not found:
        return []
    return [
        "",
        "## Calls without a header",
        "",
        "The span of such a call has its parent, but its `traceparent` was not written, so the next"
        " host begins another trace. Where this kernel's FIONREAD is wrong, a process that calls it"
        " gets one header for each connection ([decision 2](decisions/0002-fionread.md)).",
        "",
        "| | % of the calls, 32 requests at a time |",
        "|---|--:|",
        *found,
    ]


def _evidence(rows: Sequence[Row]) -> list[str]:
    lines = [
        "",
        "## Evidence",
        "",
        "Of all calls of an application, 32 requests at a time: by which"
        " [evidence](operator/propagation.md#which-request-is-the-parent) they were judged.",
        "",
        "| | % of the calls |",
        "|---|---|",
    ]
    for row in rows:
        total: Counter[str] = Counter()
        for _, _, result in _cells([row], 32):
            for name, count in result.get("evidence", {}).items():
                verdict, _, kind = name.partition(" by ")
                total["no parent" if kind == "none" else f"{kind}, {verdict}"] += count
        calls = sum(total.values())
        said = "; ".join(f"{name} {percent(count, calls)}" for name, count in total.most_common())
        lines.append(f"| {row['title']} | {said} |")
    return lines


if __name__ == "__main__":
    render()
