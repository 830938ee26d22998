"""Where a uprobe on a Go function is cheap, and still sees the arguments.

The kernel emulates jumps, calls, pushes and the nop of one byte (arch/x86/kernel/uprobes.c), and
single-steps a copy of anything else, which costs ten times as much. Arguments are in AX, BX, CX,
DI, SI, R8 to R11, the goroutine is in R14 (cmd/compile/abi-internal.md). A function begins with the
check of its stack (cmd/internal/obj/x86/obj6.go, stacksplit), which ends in a branch and touches
nothing but flags and R12:
    cmp 0x10(%r14),%rsp                                      jbe     small frames
    lea -x(%rsp),%r12;             cmp 0x10(%r14),%r12;      jbe     large frames
    mov %rsp,%r12; sub $x,%r12; jb …                                 huge frames
What needs no check begins with a push (since Go 1.21), or with anything: a comparison of registers,
which changes flags only, is passed as well. What is not in this list ends the search.
"""

from __future__ import annotations

import re

# What changes only flags or R12, which no Go function expects to be kept or set.
_HARMLESS = re.compile(
    rb"""
      \x49\x3b\x66\x10                # cmp 0x10(%r14),%rsp
    | \x4d\x3b\x66\x10                # cmp 0x10(%r14),%r12
    | \x4c\x8d\x64\x24[\x00-\xff]     # lea x(%rsp),%r12
    | \x4c\x8d\xa4\x24[\x00-\xff]{4}  # the same, with 32 bits
    | \x49\x89\xe4                    # mov %rsp,%r12
    | \x49\x81\xec[\x00-\xff]{4}      # sub $x,%r12
    | \x49\x83\xec[\x00-\xff]         # the same, with 8 bits
    | [\x40-\x4f]?[\x38\x39\x3a\x3b\x84\x85][\xc0-\xff]        # cmp or test of two registers
    | [\x48-\x4f]\x83[\xf8-\xff][\x00-\xff]                    # cmp $x,register
    | \x66\x90                        # nop
    | \x0f\x1f(?:\x00|\x40\x00|\x44\x00\x00|\x80\x00{4}|\x84\x00{5})
    """,
    re.VERBOSE | re.DOTALL,
)
_STACK_CHECKS = (b"\x49\x3b\x66\x10", b"\x4d\x3b\x66\x10")
_JBE, _JBE_NEAR = b"\x76", b"\x0f\x86"
_EMULATED = re.compile(
    rb"[\x50-\x57\x70-\x7f\x90\xe8\xe9\xeb]|\x41[\x50-\x57]|\x0f[\x80-\x8f]", re.DOTALL
)
_MAX_PASSED = 4
CODE_BYTES = 48  # enough for what is passed


def cheap(code: bytes) -> tuple[int, bool] | None:
    """How far from its start a function is probed cheaply, and whether there the stack is checked.

    None where nothing cheap comes before something that may change an argument.
    """
    at, last = 0, b""
    for _ in range(_MAX_PASSED + 1):
        if _EMULATED.match(code, at):
            checks = last in _STACK_CHECKS and code.startswith((_JBE, _JBE_NEAR), at)
            return at, checks
        passed = _HARMLESS.match(code, at)
        if passed is None:
            return None
        at, last = passed.end(), passed.group()
    return None
