"""Where in a function a probe goes."""

from __future__ import annotations

from dataclasses import dataclass

CODE_BYTES = 48  # of a function's start: enough to find its place


@dataclass(frozen=True, slots=True)
class Place:
    """An instruction at which the arguments are still where the caller has put them."""

    past: int  # bytes from the start of the function
    single_stepped: bool  # the kernel executes a copy of the instruction: 23 µs, emulated 0.5 µs
    # The instruction is the branch of Go's stack check. Where it is taken (on x86: CF or ZF is
    # set), the goroutine gets a larger stack, or is preempted, and the function begins once more.
    restarts: bool = False
