"""`make bench-parents`: how often the parents of real applications' calls are right.

    python -m tests.parents.run [--only APP,…] [--behaviours NAME,…] [--concurrent N,…]

Where all behaviours were run, the rows of these applications are replaced in docs/parents.json, and
docs/parents.md is written from it. Exit status 1: a parent was wrong, a request failed, or no
counter says why a call has no parent; 2: something is missing.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.parents import pages, report
from tests.parents.app import App, Behaviour, MissingError
from tests.parents.apps import APPS
from tests.parents.cell import REQUESTS, bench
from tests.parents.report import Grid


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", default="", help="applications, or runtimes")
    parser.add_argument("--behaviours", default="", help=", ".join(b.value for b in Behaviour))
    parser.add_argument("--concurrent", default="", help="of 1, 8, 32")
    parser.add_argument("--output", type=Path, default=pages.DOCS, help="where the pages are")
    parser.add_argument("--install", action="store_true", help="only install what is missing")
    parser.add_argument(
        "--parents",
        default="proven",
        choices=("proven", "likely"),
        help="propagation.parents: with likely, no page is written",
    )
    arguments = parser.parse_args()
    apps = _chosen(arguments.only)
    behaviours = [Behaviour(name) for name in arguments.behaviours.split(",") if name]
    concurrent = [int(word) for word in arguments.concurrent.split(",") if word]
    if not apps:
        parser.error(f"--only: there are {', '.join(app.name for app in APPS)}")
    if os.geteuid() != 0:
        print("parents: loading BPF programs needs root", file=sys.stderr)
        return 2
    if arguments.install:
        return _install(apps)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    part = behaviours or concurrent or arguments.parents != "proven"
    grid = measure(
        apps,
        behaviours=behaviours or list(Behaviour),
        requests={many: REQUESTS[many] for many in concurrent or REQUESTS},
        parents=arguments.parents,
        output=None if part else arguments.output,
    )
    print(report.text(grid))
    return 1 if grid.problems() else 0


def _install(apps: Sequence[App]) -> int:
    """Installs what applications need: a guest has no network. Returns the exit status."""
    left_out = 0
    for app in apps:
        try:
            app.install()
        except MissingError as error:
            print(f"parents: {app.name}: {error}", file=sys.stderr)
            left_out = 2
    return left_out


def measure(
    apps: Sequence[App],
    *,
    behaviours: Sequence[Behaviour],
    requests: dict[int, int],
    parents: str,
    output: Path | None,
) -> Grid:
    """Runs the applications, one after the other. Says what it does on standard error.

    The pages in `output` get the row of each application once it has run.
    """
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"parents: {time.monotonic() - started:4.0f} s  {line}", file=sys.stderr, flush=True)

    grid = Grid()
    with bench(parents) as running:
        for app in apps:
            wanted = [one for one in app.behaviours if one in behaviours]
            try:
                for behaviour, result in running.run(app, wanted, requests):
                    grid.add(app, behaviour, result)
                    say(report.line(app, behaviour, result))
            except MissingError as error:
                grid.left_out[app.name] = str(error)
                say(f"{app.name}: left out: {error}")
            except RuntimeError as error:
                grid.broken[app.name] = str(error)
                say(f"{app.name}: {error}")
            if output is not None:
                pages.write(grid, output=output)
    grid.seconds = time.monotonic() - started
    return grid


def _chosen(words: str) -> list[App]:
    wanted = {word.lower() for word in words.split(",") if word}
    return [
        app
        for app in APPS
        if not wanted or wanted & {app.name, app.runtime.lower().replace(" ", "-")}
    ]


if __name__ == "__main__":
    sys.exit(main())
