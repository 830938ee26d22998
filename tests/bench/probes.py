"""The cost of a uprobe by the instruction that it stands on, in a program of the bench's own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from throughline.bpf import libbpf, links
from throughline.probes import trials, uprobes
from throughline.probes.site import Site
from throughline.probes.uprobes import Kind

# Each function begins with the instruction that its probe stands on, but for `prologue`, which has
# what Go's functions begin with: the look whether the stack suffices. R14 is the goroutine there.
_SOURCE = r"""
#include <stdio.h>
#include <time.h>

#define BARE __attribute__((noinline, naked))

BARE void at_push(void) { asm volatile("push %rbp; pop %rbp; ret"); }
BARE void at_sub(void) { asm volatile("sub $8,%rsp; add $8,%rsp; ret"); }

long goroutine[4];

BARE void prologue(void)
{
	asm volatile("push %r14; mov $goroutine,%r14;"
		"at_cmp: cmp 0x10(%r14),%rsp;"
		"at_jbe: jbe 1f;"
		"1: pop %r14; ret");
}

static double cost(void (*function)(void))
{
	double least = 1e18;

	for (int round = 0; round < 5; round++) {
		struct timespec from, to;

		clock_gettime(CLOCK_MONOTONIC, &from);
		for (int i = 0; i < 20000; i++)
			function();
		clock_gettime(CLOCK_MONOTONIC, &to);
		double each = ((to.tv_sec - from.tv_sec) * 1e9 + (to.tv_nsec - from.tv_nsec)) / 20000;
		least = each < least ? each : least;
	}
	return least;
}

int main(void)
{
	printf("{\"at_push\": %f, \"at_sub\": %f, \"prologue\": %f}", cost(at_push), cost(at_sub),
		cost(prologue));
	return 0;
}
"""
# what is said of it -> the function, the place in it, and whether the probe is at its return
_PLACES = {
    "at `push`, which the kernel carries out": ("at_push", "at_push", False),
    "the same, and at the return of the function": ("at_push", "at_push", True),
    "at `sub`, in single step": ("at_sub", "at_sub", False),
    "at the `jbe` of Go's stack check, which the kernel carries out": ("prologue", "at_jbe", False),
    "at the `cmp` before it, Go's first instruction, in single step": ("prologue", "at_cmp", False),
}


def prices(directory: Path) -> dict[str, float]:
    """Nanoseconds that a probe adds to a call, with a program that does nothing."""
    source, program = directory / "probes.c", directory / "probes"
    source.write_text(_SOURCE)
    subprocess.run(["cc", "-O1", "-no-pie", "-o", str(program), str(source)], check=True)
    without = _run(program)
    kind = trials.find_kind()
    expected = links.UPROBE_MULTI if kind is Kind.MULTI else 0
    silent: Any = SimpleNamespace(
        fd=libbpf.load_constant(0, kind=2, name="tl_silent", attach_type=expected)
    )
    found = {}
    for place, (function, symbol, returns) in _PLACES.items():
        offset = _offset(program, symbol)
        link = uprobes.attach(silent, path=program, site=Site("", offset, returns), kind=kind)
        try:
            found[place] = _run(program)[function] - without[function]
        finally:
            link.destroy()
    os.close(silent.fd)
    return found


def _run(program: Path) -> dict[str, float]:
    done = subprocess.run([str(program)], capture_output=True, text=True, check=True, timeout=60)
    times: dict[str, float] = json.loads(done.stdout)
    return times


def _offset(program: Path, symbol: str) -> int:
    """In the file: -no-pie puts the text segment at 0x400000 of memory."""
    done = subprocess.run(["nm", str(program)], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        if line.endswith(f" {symbol}"):
            return int(line.split()[0], 16) - 0x400000
    raise LookupError(symbol)
