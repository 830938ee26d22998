"""arm64: at which instructions a probe is cheap and still sees the arguments.

The kernel simulates branches and the instructions that form an address; any other one it
single-steps as a copy, by two exceptions instead of one (arch/arm64/kernel/probes/decode-insn.c).
So a probe may go past instructions that change no argument, to the first one that is simulated.

C functions: arguments are in X0 to X7 (AAPCS64). Passed are `bti` and `nop`. Never passed is
`paciasp`, which signs the return address: a return probe puts its own address there, and has to do
so before.

Go functions: arguments are in R0 to R15, the goroutine is in R28 (cmd/compile/abi-internal.md).
Most functions begin with a check of the stack, which changes only flags, R16, R17 and R27 and ends
in a branch (cmd/internal/obj/arm64/obj7.go, stacksplit):
    ldr x16, [x28, #16];                  cmp sp, x16;   b.ls     small frames
    ldr x16, [x28, #16]; mov x17, sp;     cmp x17, x16;  b.ls     the same until Go 1.18
    ldr x16, [x28, #16]; sub x17, sp, #x; cmp x17, x16;  b.ls     large frames
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from throughline.probes.arch.place import Place

ELF_MACHINE = 183  # EM_AARCH64
RELATIVE = 1027  # R_AARCH64_RELATIVE
FUNCTION = bytes.fromhex("1f2003d5 c0035fd6")  # nop; ret
PROBE_SYSCALLS = ()  # a probe enters the kernel by an exception
CODE_STEP = 4
SPECIFIC_AT = 0x110
GO_REGISTERS = 16
PTHREAD_AT: int | None = None  # struct pthread ends there: its size differs

_NOP = 0xD503201F
_PASSED_IN_C = frozenset({_NOP, 0xD503241F, 0xD503245F, 0xD503249F, 0xD50324DF})  # nop, bti …
_BRANCHES = ((0xFC000000, 0x14000000), (0xFC000000, 0x94000000))  # b, bl
# (mask, value) of what the kernel simulates, from Linux 4.10 on.
_SIMULATED = (
    *_BRANCHES,
    (0xFF000010, 0x54000000),  # b.cond
    (0x7E000000, 0x34000000),  # cbz, cbnz
    (0x7E000000, 0x36000000),  # tbz, tbnz
    (0x1F000000, 0x10000000),  # adr, adrp
)
_CMP_SP_X16, _CMP_X17_X16 = 0xEB3063FF, 0xEB10023F
_STACK_CHECKS = (_CMP_SP_X16, _CMP_X17_X16)
# Changes only flags, R16 or R17, which no Go function expects to be kept or set.
_PASSED_IN_GO = (
    (0xFFFFFFFF, 0xF9400B90),  # ldr x16, [x28, #16]
    (0xFFFFFFFF, _CMP_SP_X16),
    (0xFFFFFFFF, _CMP_X17_X16),
    (0xFF8003FF, 0xD10003F1),  # sub x17, sp, #x
    (0xFFFFFFFF, 0x910003F1),  # mov x17, sp
    (0xFFFFFFFF, _NOP),
    (0x7FE0FC1F, 0x6B00001F),  # cmp of two registers
    (0x7F80001F, 0x7100001F),  # cmp register, #x
)
_B_LS = (0xFF00001F, 0x54000009)
_MAX_PASSED = 4  # instructions
# ldr wN, [x0, #x] and ldrsw xN, [x0, #x]
_NUMBERS = ((0xFFC003E0, 0xB9400000), (0xFFC003E0, 0xB9800000))


def c_place(code: bytes) -> Place:
    """The function's first simulated instruction, else its start, which is single-stepped."""
    for index, word in enumerate(_words(code)):
        if _is(word, *_SIMULATED):
            return Place(4 * index, single_stepped=False)
        if word not in _PASSED_IN_C:
            break
    return Place(0, single_stepped=True)


def go_place(code: bytes) -> Place:
    """The same for a function of Go."""
    last = 0
    for index, word in enumerate(_words(code)):
        if _is(word, *_SIMULATED):
            restarts = last in _STACK_CHECKS and _is(word, _B_LS)
            return Place(4 * index, single_stepped=False, restarts=restarts)
        if index == _MAX_PASSED or not _is(word, *_PASSED_IN_GO):
            break
        last = word
    return Place(0, single_stepped=True)


def branch_targets(code: bytes) -> Iterator[int]:
    """Where calls and jumps lead, counted from the start of the code; some are none."""
    for index, word in enumerate(_words(code)):
        if _is(word, *_BRANCHES):
            distance = word & 0x3FFFFFF
            yield 4 * (index + distance - (distance >> 25 << 26))


def numbers_of_argument(code: bytes) -> Iterator[int]:
    """Offsets of numbers of 32 bits that are read in the object of the first argument."""
    for word in _words(code):
        at = 4 * (word >> 10 & 0xFFF)
        if 64 <= at < 128 and _is(word, *_NUMBERS):
            yield at


def _words(code: bytes) -> Iterator[int]:
    return (word for (word,) in struct.iter_unpack("<I", code[: len(code) // 4 * 4]))


def _is(word: int, *patterns: tuple[int, int]) -> bool:
    return any(word & mask == value for mask, value in patterns)
