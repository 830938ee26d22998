"""A waterfall of traces as one HTML page without other files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tests.fixtures.spans import Span, by_trace, walk

TEMPLATES = Path(__file__).with_name("templates")
COLOURS = 8
MAX_TRACES = 200
MAX_TICKS = 6

EVIDENCE = {
    "none": "",
    "header": "the request's traceparent says so",
    "connect": "the connection was made while serving it",
    "restore": "it was the last to write on this connection",
    "thread": "the thread was serving it",
    "packet": "a TCP option beside the request's bytes says so",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One span's line: its depth in the tree and where its bar is, in percent of the trace."""

    span: Span
    depth: int
    colour: int
    left: float
    width: float
    parent: str  # service and kind of the parent, "" for a root
    evidence: str  # a phrase, "" when unknown


@dataclass(frozen=True, slots=True)
class Trace:
    """One trace's section."""

    trace_id: str
    rows: tuple[Row, ...]
    start: datetime
    milliseconds: float
    ticks: tuple[tuple[float, str], ...]  # percent, label
    services: tuple[str, ...]
    errors: int


def duration(milliseconds: float) -> str:
    """A duration in the unit that suits it."""
    if milliseconds < 1:
        return f"{milliseconds * 1000:.0f} µs"
    if milliseconds < 1000:
        return f"{milliseconds:.2f} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"
    return f"{milliseconds / 1000:.2f} s"


def ticks(milliseconds: float) -> list[tuple[float, str]]:
    """Round times up to `milliseconds` (1, 2 or 5 times a power of ten), with their percentage."""
    if milliseconds <= 0:
        return [(0.0, "0")]
    step = 1e-3
    while milliseconds / step > MAX_TICKS:
        # 1, 2, 5, 10, …
        step *= 2.5 if f"{step:e}".startswith("2") else 2
    places = [index * step for index in range(int(milliseconds / step) + 1)]
    labels = [
        re.sub(r"\.0+ |(?<=\.\d)0 ", " ", duration(place)) if place else "0" for place in places
    ]
    return [
        (100 * place / milliseconds, label) for place, label in zip(places, labels, strict=True)
    ]


def _trace(trace_id: str, spans: list[Span], colours: dict[str, int]) -> Trace:
    start = min(span.start_ns for span in spans)
    length = max(1, max(span.end_ns for span in spans) - start)
    known = {span.span_id: span for span in spans}
    rows = []
    for span, depth in walk(spans):
        parent = known.get(span.parent_span_id)
        outside = f"a caller that sent no span ({span.parent_span_id})"
        rows.append(
            Row(
                span=span,
                depth=depth,
                colour=colours[span.service],
                left=100 * (span.start_ns - start) / length,
                width=100 * (span.end_ns - span.start_ns) / length,
                parent=f"{parent.service} {parent.kind}"
                if parent
                else (outside if span.parent_span_id else ""),
                evidence=EVIDENCE.get(span.evidence, span.evidence),
            )
        )
    return Trace(
        trace_id=trace_id,
        rows=tuple(rows),
        start=datetime.fromtimestamp(start / 1e9, tz=timezone.utc),
        milliseconds=length / 1e6,
        ticks=tuple(ticks(length / 1e6)),
        services=tuple(dict.fromkeys(row.span.service for row in rows)),
        errors=sum(row.span.error for row in rows),
    )


def render(spans: Iterable[Span], *, title: str = "Traces") -> str:
    """The page. The traces with the most spans come first, and the first one is open."""
    received = list(spans)
    traces = sorted(by_trace(received).items(), key=lambda item: -len(item[1]))
    services = dict.fromkeys(span.service for _, one in traces for span, _ in walk(one))
    colours = {service: index % COLOURS for index, service in enumerate(services)}
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    return environment.get_template("waterfall.html.j2").render(
        title=title,
        traces=[_trace(trace_id, one, colours) for trace_id, one in traces[:MAX_TRACES]],
        colours=colours,
        trace_count=len(traces),
        span_count=len(received),
        hosts=sorted({span.host for span in received if span.host}),
    )


def write(file: Path, spans: Iterable[Span], *, title: str = "Traces") -> None:
    """Writes the page to `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(render(spans, title=title), encoding="utf-8")
