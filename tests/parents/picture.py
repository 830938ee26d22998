"""The grid as an SVG: a row for each application, a column for each behaviour, three bars a cell.

The bars are 1, 8 and 32 requests at a time; a bar's parts are the shares of right, none and wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tests.parents.app import Behaviour

Row = Mapping[str, Any]

_LEFT, _TOP, _CELL, _GAP, _LINE, _HEAD = 316, 78, 92, 10, 26, 24
_BAR, _BAR_STEP = 5, 7
_LEAST = 3.0  # pixels of a part that is not 0, so that one wrong parent is seen
_PARTS = ("right", "none", "wrong")
_STYLE = """
svg { font: 12px system-ui, sans-serif; background: #fff }
text { fill: #1f2328 } .s { fill: #59636e } .h { font-weight: 600 } .w { fill: #b3261e }
.right { fill: #2a8f6a } .none { fill: #c3c9d0 } .wrong { fill: #d62f22 } .n { text-anchor: end }
@media (prefers-color-scheme: dark) {
svg { background: #0d1117 } text { fill: #e6edf3 } .s { fill: #9198a1 } .w { fill: #ff8a80 }
.right { fill: #3fb68b } .none { fill: #4a525c } .wrong { fill: #ff5a4d } }
"""


def svg(rows: Sequence[Row], *, title: str) -> str:
    """Draws rows of docs/parents.json, which are in the order of their runtimes."""
    columns = list(Behaviour)
    paths: dict[str, list[str]] = {part: [] for part in _PARTS}
    texts = [
        f'<text x="12" y="24" class="h">{escape(title)}</text>',
        '<text x="12" y="44" class="s">Bars of a cell, from the top: 1, 8, 32 requests at a time.'
        " The number: right at 32, in percent.</text>",
        *_legend(),
    ]
    for number, behaviour in enumerate(columns):
        texts.append(_text(_LEFT + number * (_CELL + _GAP), _TOP - 10, behaviour.value, "s"))
    y, runtime = _TOP, ""
    for row in rows:
        if row["runtime"] != runtime:
            runtime = row["runtime"]
            texts.append(_text(12, y + 16, runtime, "h"))
            y += _HEAD
        texts.append(_text(22, y + 15, row["title"].replace("`", ""), ""))
        for number, behaviour in enumerate(columns):
            cell = row["cells"].get(behaviour.value)
            if cell:
                texts.append(_cell(paths, _LEFT + number * (_CELL + _GAP), y, cell))
        y += _LINE
    width = _LEFT + len(columns) * (_CELL + _GAP) + 6
    shapes = [f'<path class="{part}" d="{"".join(found)}"/>' for part, found in paths.items()]
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y + 10}"'
            f' viewBox="0 0 {width} {y + 10}" role="img">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style>",
            *shapes,
            *texts,
            "</svg>\n",
        )
    )


def _text(x: int, y: int, words: str, kind: str) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(words)}</text>'


def _legend() -> list[str]:
    found, x = [], 560
    for part in _PARTS:
        found.append(f'<rect class="{part}" x="{x}" y="14" width="11" height="11"/>')
        found.append(_text(x + 16, 24, part, "s"))
        x += 70
    return found


def _cell(
    paths: dict[str, list[str]], left: int, top: int, cell: Sequence[Mapping[str, Any]]
) -> str:
    """Draws the bars of a cell. Returns its number."""
    wide = _CELL - 38
    for place, result in enumerate(cell):
        x, y = float(left), top + 3 + place * _BAR_STEP
        for part, width in _widths(result, wide):
            paths[part].append(f"M{x:g} {y}h{width:g}v{_BAR}h-{width:g}z")
            x += width
    last = cell[-1]
    wrong = any(result["wrong"] for result in cell)
    shown = percent(last["right"], last["calls"])
    kind = "w h" if wrong else "s"
    return f'<text x="{left + _CELL - 2}" y="{top + 15}" class="n {kind}">{shown}</text>'


def _widths(result: Mapping[str, Any], wide: int) -> list[tuple[str, float]]:
    """The parts of a bar that are not 0, with their widths; none is too small to be seen."""
    calls = result["calls"]
    if not calls:
        return []
    widths = {part: wide * result[part] / calls for part in _PARTS if result[part]}
    for part, width in widths.items():
        if width < _LEAST:
            most = max(widths, key=lambda one: widths[one])
            widths[most] -= _LEAST - width
            widths[part] = _LEAST
    return [(part, round(width, 1)) for part, width in widths.items()]


def percent(part: int, whole: int) -> str:
    """A share in percent, never rounded up to 100 or down to 0."""
    if part in (0, whole):
        return "100" if part else "0"
    return f"{min(max(100 * part / whole, 0.1), 99.9):.1f}"
