"""The grid of one run, as text."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.parents.app import App, Behaviour
from tests.parents.judge import Result
from tests.parents.picture import percent


@dataclass(slots=True)
class Grid:
    """Everything that was measured in one run."""

    rows: dict[str, App] = field(default_factory=dict)
    cells: dict[str, dict[Behaviour, list[Result]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # applications, and why
    broken: dict[str, str] = field(default_factory=dict)  # those that did not start
    seconds: float = 0.0

    def add(self, app: App, behaviour: Behaviour, result: Result) -> None:
        self.rows[app.name] = app
        self.cells.setdefault(app.name, {}).setdefault(behaviour, []).append(result)

    def problems(self) -> list[str]:
        """What makes the run a failure: wrong parents, failed requests, and nones unexplained."""
        found = [f"{name}: {reason}" for name, reason in self.broken.items()]
        for name, row in self.cells.items():
            for behaviour, results in row.items():
                for result in results:
                    place = f"{name} {behaviour.value} at {result.concurrent}"
                    if result.wrong:
                        found.append(f"{place}: {result.wrong} wrong: {result.examples[0]}")
                    if result.failures:
                        found.append(
                            f"{place}: {len(result.failures)} failed: {result.failures[0]}"
                        )
                    if not result.calls:
                        found.append(f"{place}: no call has reached the backend")
                    if result.unexplained:
                        found.append(f"{place}: {result.unexplained} none without a counter")
        return found


def line(app: App, behaviour: Behaviour, result: Result) -> str:
    """One cell in one line."""
    shares = (percent(getattr(result, name), result.calls) for name in ("right", "wrong", "none"))
    said = f"{app.name:18} {behaviour.value:9} {result.concurrent:2}: " + " / ".join(shares)
    if result.no_header:
        said += f", no header {percent(result.no_header, result.calls)}"
    if result.unseen:
        said += f", unseen {result.unseen}"
    if result.failures:
        said += f", FAILED {len(result.failures)}"
    detail = [f"{name} {total}" for name, total in result.evidence.items()]
    if result.none:
        detail += [f"{name} {total}" for name, total in result.reasons.items()]
    return f"{said}  ({', '.join(detail)})"


def text(grid: Grid) -> str:
    """The whole grid: right / wrong / none in percent of the calls."""
    lines = ["", "right / wrong / none, % of the calls; the counters say why"]
    for name, row in grid.cells.items():
        for behaviour, results in row.items():
            lines += [line(grid.rows[name], behaviour, result) for result in results]
    lines += [f"{name}: left out: {reason}" for name, reason in grid.left_out.items()]
    problems = grid.problems()
    lines += ["", *(f"PROBLEM {problem}" for problem in problems)]
    cells = sum(len(results) for row in grid.cells.values() for results in row.values())
    lines.append(f"{cells} cells in {grid.seconds:.0f} s, {len(problems)} problems")
    return "\n".join(lines)
