"""x86-64: at which instructions a probe is cheap and still sees the arguments.

The kernel emulates jumps, calls, pushes and the nop of one byte, which costs about 0.5 µs. Any
other instruction it single-steps as a copy, which costs 23 µs (arch/x86/kernel/uprobes.c). So a
probe may go past instructions that change no argument, to the first one that is emulated.

C functions: arguments are in registers and on the stack (System V ABI). Passed are `endbr64` and
one `test` of a register with itself.

Go functions: arguments are in AX, BX, CX, DI, SI, R8 to R11, the goroutine is in R14
(cmd/compile/abi-internal.md). Most functions begin with a check of the stack, which changes only
flags and R12 and ends in a branch (cmd/internal/obj/x86/obj6.go, stacksplit):
    cmp 0x10(%r14),%rsp                                      jbe     small frames
    lea -x(%rsp),%r12;             cmp 0x10(%r14),%r12;      jbe     large frames
    mov %rsp,%r12; sub $x,%r12; jb …                                 huge frames
A function without the check begins with a push (since Go 1.21) or with any other instruction.
Comparisons of registers change only flags, so they are passed as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from throughline.probes.arch.place import Place

ELF_MACHINE = 62  # EM_X86_64
RELATIVE = 8  # R_X86_64_RELATIVE
FUNCTION = b"\x90\xc3"  # nop; ret
PROBE_SYSCALLS = (335, 336)  # uretprobe (Linux 6.11), uprobe (6.18)
CODE_STEP = 1
SPECIFIC_AT = 0x310
GO_REGISTERS = 9
PTHREAD_AT: int | None = 0

_EMULATED = re.compile(
    rb"""
      [\x50-\x57] | \x41[\x50-\x57]      # push
    | [\x70-\x7f] | \x0f[\x80-\x8f]      # jcc
    | [\xe8\xe9\xeb]                     # call, jmp
    | \x90                               # nop
    """,
    re.VERBOSE | re.DOTALL,
)
_BEFORE_C = re.compile(
    rb"""
    (?:\xf3\x0f\x1e\xfa)?                # endbr64
    (?:[\x40-\x4f]?\x85[\xc0-\xff])?     # test of two registers
    """,
    re.VERBOSE | re.DOTALL,
)
# Changes only flags or R12, which no Go function expects to be kept or set.
_PASSED_IN_GO = re.compile(
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
_MAX_PASSED = 4  # instructions
# mov x(%rdi),%eax and movslq x(%rdi),%rax, to any register
_NUMBER = re.compile(
    rb"(?:(?<![\x48-\x4f])\x8b|[\x48\x4c]\x63)[\x47\x4f\x57\x5f\x67\x6f\x77\x7f]([\x40-\x7f])",
    re.DOTALL,
)
_BRANCHES = (b"\xe8", b"\xe9")  # call and jmp, followed by a distance of 32 bits


def c_place(code: bytes) -> Place:
    """The function's first emulated instruction, else its start, which is single-stepped."""
    before = _BEFORE_C.match(code)
    past = before.end() if before else 0
    if _EMULATED.match(code, past):
        return Place(past, single_stepped=False)
    return Place(0, single_stepped=True)


def go_place(code: bytes) -> Place:
    """The same for a function of Go."""
    past, last = 0, b""
    for _ in range(_MAX_PASSED + 1):
        if _EMULATED.match(code, past):
            restarts = last in _STACK_CHECKS and code.startswith((_JBE, _JBE_NEAR), past)
            return Place(past, single_stepped=False, restarts=restarts)
        passed = _PASSED_IN_GO.match(code, past)
        if passed is None:
            break
        past, last = passed.end(), passed.group()
    return Place(0, single_stepped=True)


def branch_targets(code: bytes) -> Iterator[int]:
    """Where calls and jumps lead, counted from the start of the code; some are none."""
    for branch in _BRANCHES:
        at = code.find(branch)
        while 0 <= at <= len(code) - 5:
            yield at + 5 + int.from_bytes(code[at + 1 : at + 5], "little", signed=True)
            at = code.find(branch, at + 1)


def numbers_of_argument(code: bytes) -> Iterator[int]:
    """Offsets of numbers of 32 bits that are read in the object of the first argument."""
    for found in _NUMBER.finditer(code):
        yield found[1][0]
