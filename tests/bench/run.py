"""`make bench`: what tracing costs, with the agent off and on by turns, as docs/bench.md.

    python tests/bench/run.py [--output FILE] [--only PART,…]

A report, not a test: it says what it measured, and beside it what was aimed for.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
sys.path[:0] = [str(CHECKOUT)]

from tests.bench import load, measure, report  # noqa: E402
from tests.kernel.traced import Traced  # noqa: E402

LONGEST_SECONDS = 590
PARTS = ("programs", "agent", "starts", "syscalls", "tls", "go", "others", "rates")
_TOOLS = ("nginx", "wrk", "bpftool", "taskset", "cc")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, default=CHECKOUT / "docs" / "bench.md")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        print(f"bench: {', '.join(missing)} not found; run make setup", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("bench: loading BPF programs needs root", file=sys.stderr)
        return 2
    started = time.monotonic()

    def say(what: str) -> None:
        print(f"bench: {time.monotonic() - started:4.0f} s  {what}", file=sys.stderr, flush=True)

    # the end of the time, or of patience, unwinds the stack below like Ctrl-C does
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    signal.alarm(LONGEST_SECONDS)
    results = measure.Results(load_before=os.getloadavg()[0], others=load.agents())
    with ExitStack() as stack:
        # nginx behind the agent ends after the agent, which sends to it
        traced = stack.enter_context(Traced(start=False))
        bench = measure.Bench(traced, stack, say)
        for part in PARTS:
            if part in wanted:
                getattr(bench, part)(results)
    text = report.markdown(results, seconds=time.monotonic() - started)
    print(text)
    if set(wanted) == set(PARTS):
        arguments.output.parent.mkdir(exist_ok=True)
        arguments.output.write_text(text)
        print(f"bench: {arguments.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
