"""`make bench`: what tracing costs, with the agent off and on by turns, as pages of docs.

    python tests/bench/run.py [--output DIRECTORY] [--only PART,…]

A report, not a test: it says what it measured, and beside it what was aimed for. A page is written
when all of its parts were measured, so that each number on it is of one run.
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
from tests.kernel.traced import Traced  # noqa: E402

LONGEST_SECONDS = 590  # of what is on this kernel, for each page
PARTS = ("programs", "agent", "starts", "syscalls", "tls", "others", "rates")
GO_PARTS = ("go", "go_vm")  # on this kernel, and in a VM
PAGES = {"bench.md": PARTS, "bench-go.md": GO_PARTS}
_TOOLS = ("nginx", "wrk", "h2load", "bpftool", "taskset", "cc")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, default=CHECKOUT / "docs", help="for the pages")
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
        _write("bench.md", text, wanted, arguments.output)
    if set(wanted) & set(GO_PARTS):
        _write("bench-go.md", _measure_go(wanted, say), wanted, arguments.output)
    return 0


def _measure(parts: Sequence[str], say: measure.Say) -> str:
    started = time.monotonic()
    results = measure.Results(load_before=os.getloadavg()[0], others=load.agents())
    with ExitStack() as stack:
        # nginx behind the agent ends after the agent, which sends to it
        traced = stack.enter_context(Traced(start=False))
        bench = measure.Bench(traced, stack, say)
        for part in parts:
            getattr(bench, part)(results)
    return report.markdown(results, seconds=time.monotonic() - started)


def _measure_go(wanted: Sequence[str], say: measure.Say) -> str:
    here = vm = None
    if "go" in wanted:
        signal.alarm(LONGEST_SECONDS)
        with ExitStack() as stack:
            here = golang.Bench(stack.enter_context(Traced(start=False)), stack).measure(say=say)
        signal.alarm(0)
    if "go_vm" in wanted:
        say(f"Go: in a VM with Linux {guest.KERNEL}")
        vm = guest.measure()
    return golang_report.markdown(here, vm)


def _write(page: str, text: str, wanted: Sequence[str], folder: Path) -> None:
    print(text)
    if set(PAGES[page]) <= set(wanted):
        folder.mkdir(exist_ok=True)
        (folder / page).write_text(text)
        print(f"bench: {folder / page}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
