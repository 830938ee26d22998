"""`make bench`: what tracing costs, with the agent off and on by turns, as pages of docs.

    python tests/bench/run.py [--output DIRECTORY] [--only PART,…]

A report, not a test: it says what it measured, and beside it what was aimed for. bench.md is
written when all of its parts were measured, so that each number on it is of one run; bench-go.md
from what was measured now and from what build/bench keeps of the last time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
sys.path[:0] = [str(CHECKOUT)]

from tests.bench import golang, golang_report, guest, load, measure, report  # noqa: E402
from tests.fixtures.traced import Traced  # noqa: E402

LONGEST_SECONDS = 590  # of what is on this kernel, for each page
PARTS = ("programs", "agent", "starts", "syscalls", "tls", "others", "rates")
GO_PARTS = ("go", "go_vm")  # on this kernel, and in a VM
KEPT = CHECKOUT / "build" / "bench"
_TOOLS = ("nginx", "wrk", "h2load", "bpftool", "taskset", "cc")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, default=CHECKOUT / "docs/reference")
    every = [*PARTS, *GO_PARTS]
    parser.add_argument("--only", default=",".join(every), help="parts, with commas between them")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if unknown := set(wanted) - set(every):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(every)}")
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
    if set(wanted) & set(PARTS):
        signal.alarm(LONGEST_SECONDS)
        text = _measure([part for part in PARTS if part in wanted], say)
        signal.alarm(0)
        print(text)
        if set(PARTS) <= set(wanted):
            _write(arguments.output / "bench.md", text)
    if set(wanted) & set(GO_PARTS):
        _measure_go([part for part in GO_PARTS if part in wanted], say)
        text = golang_report.markdown(*map(_kept, GO_PARTS))
        print(text)
        _write(arguments.output / "bench-go.md", text)
    return 0


def _measure(parts: Sequence[str], say: measure.Say) -> str:
    started = time.monotonic()
    results = measure.Results(load_before=os.getloadavg()[0], others=load.agents())
    with ExitStack() as stack:
        # nginx behind the agent ends after the agent, which sends to it
        traced = stack.enter_context(Traced(start=False, quick=False))
        bench = measure.Bench(traced, stack, say)
        for part in parts:
            getattr(bench, part)(results)
    return report.markdown(results, seconds=time.monotonic() - started)


def _measure_go(parts: Sequence[str], say: measure.Say) -> None:
    for part in parts:
        if part == "go":
            signal.alarm(LONGEST_SECONDS)
            with ExitStack() as stack:
                traced = stack.enter_context(Traced(start=False, quick=False))
                results = golang.Bench(traced, stack).measure(say=say)
            signal.alarm(0)
        else:
            say(f"Go: in a VM with Linux {guest.KERNEL}")
            results = guest.measure()
        _write(KEPT / f"{part}.json", results.json())


def _kept(part: str) -> golang.Results | None:
    file = KEPT / f"{part}.json"
    return golang.Results.read(file.read_text()) if file.exists() else None


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    print(f"bench: {file}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
