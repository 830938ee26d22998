"""Which instruction of a function is probed."""

from __future__ import annotations

import platform

import pytest

from tests.fixtures.elffile import ENDBR64, JE, PUSH, SUB, TEST_RDI
from tests.fixtures.gofile import CHECK, JBE, SMALL
from throughline.probes import arch
from throughline.probes.arch import Place, aarch64, x86_64


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (SMALL, Place(4, False, True)),
        (CHECK + b"\x0f\x86\x10\x01\x00\x00", Place(4, False, True)),
        (b"\x4c\x8d\x64\x24\xd0\x4d\x3b\x66\x10\x76\x10", Place(9, False, True)),
        (
            b"\x4c\x8d\xa4\x24\x08\xff\xff\xff\x4d\x3b\x66\x10\x0f\x86\x10\x01\x00\x00",
            Place(12, False, True),
        ),
        # the frame is so large that the stack pointer may wrap around: `jb` comes first
        (
            b"\x49\x89\xe4\x49\x81\xec\x00\x00\x10\x00\x0f\x82\x10\x00\x00\x00",
            Place(10, False, False),
        ),
        (b"\x55\x48\x89\xe5", Place(0, False, False)),
        (b"\x41\x54", Place(0, False, False)),
        (b"\x90", Place(0, False, False)),
        (b"\x66\x90" + SMALL, Place(6, False, True)),
        (b"\x48\x85\xc0\x74\x05", Place(3, False, False)),
        (b"\x48\x39\xd8\x7d\x05", Place(3, False, False)),
        (b"\x48\x83\xf8\x10\x7d\x05", Place(4, False, False)),
        (b"\xe8\x00\x00\x00\x00", Place(0, False, False)),
        (b"\xeb\x00", Place(0, False, False)),
        # what changes a register or the stack ends the search
        (b"\x48\x83\xec\x18\x48\x89\x6c\x24\x10", Place(0, True)),
        (b"\x48\x8b\x00\x74\x05", Place(0, True)),
        (b"\x48\x85\x00\x74\x05", Place(0, True)),
        (b"\x4c\x8d\x74\x24\xd0\x74\x05", Place(0, True)),
        (b"\xc3", Place(0, True)),
        (b"\x0f\x0b", Place(0, True)),
        (CHECK * 8 + JBE, Place(0, True)),
        (CHECK, Place(0, True)),
        (b"", Place(0, True)),
    ],
)
def test_where_a_go_function_is_probed(code: bytes, expected: Place) -> None:
    assert x86_64.go_place(code) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (PUSH, Place(0, False)),
        (ENDBR64 + TEST_RDI + JE, Place(7, False)),
        (b"\x85\xd2" + PUSH, Place(2, False)),
        (SUB, Place(0, True)),
        (ENDBR64 + SUB, Place(0, True)),
        (b"\x85\x17\x55", Place(0, True)),  # a test of memory
        (b"\x48\x39\xd8\x55", Place(0, True)),  # passed in Go functions only
        (b"", Place(0, True)),
    ],
)
def test_where_a_c_function_is_probed(code: bytes, expected: Place) -> None:
    assert x86_64.c_place(code) == expected


def test_where_calls_and_jumps_lead() -> None:
    call, jump = b"\xe8\x10\x00\x00\x00", b"\xe9\xf6\xff\xff\xff"
    assert sorted(x86_64.branch_targets(call + jump)) == [0, 21]
    assert list(x86_64.branch_targets(call[:4])) == []


def words(*instructions: int) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in instructions)


# As Go 1.26 and Debian's gcc 14 write them.
LDR_GUARD, CMP_SP, MOV_SP, CMP_X17 = 0xF9400B90, 0xEB3063FF, 0x910003F1, 0xEB10023F
B_LS, SUB_X17, STR_LR, PACIASP = 0x54000489, 0xD12003F1, 0xF81A0FFE, 0xD503233F
BTI_C, NOP, STP_LR, CBZ_X0 = 0xD503245F, 0xD503201F, 0xA9BE7BFD, 0xB4000060
BL, B_BACK, RET = 0x97FF71D4, 0x17FFFFFF, 0xD65F03C0


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (words(LDR_GUARD, CMP_SP, B_LS), Place(8, False, True)),
        (words(LDR_GUARD, MOV_SP, CMP_X17, B_LS), Place(12, False, True)),
        (words(LDR_GUARD, SUB_X17, CMP_X17, B_LS), Place(12, False, True)),
        (words(BL), Place(0, False)),
        (words(0xF100041F, 0x54000041), Place(4, False)),  # cmp x0, #1; b.ne
        (words(0xEB01001F, 0x54000041), Place(4, False)),  # cmp x0, x1; b.ne
        (words(CMP_SP, 0x54000041), Place(4, False)),  # another condition than that of the check
        # what changes a register or the stack ends the search
        (words(STR_LR, B_LS), Place(0, True)),
        (words(0xF1000420, 0x54000041), Place(0, True)),  # subs x0, x1, #1
        (words(0xF9400000, BL), Place(0, True)),  # ldr x0, [x0]
        (words(RET), Place(0, True)),
        (words(*[NOP] * 5, BL), Place(0, True)),
        (words(LDR_GUARD, CMP_SP), Place(0, True)),
        (words(LDR_GUARD)[:3], Place(0, True)),
        (b"", Place(0, True)),
    ],
)
def test_where_a_go_function_of_arm64_is_probed(code: bytes, expected: Place) -> None:
    assert aarch64.go_place(code) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (words(STP_LR), Place(0, True)),
        (words(CBZ_X0), Place(0, False)),
        (words(BTI_C, CBZ_X0), Place(4, False)),
        (words(NOP, BTI_C, 0x90000001), Place(8, False)),  # adrp
        # a return probe has to change the return address before that is signed
        (words(PACIASP, CBZ_X0), Place(0, True)),
        (words(BTI_C, PACIASP, BL), Place(0, True)),
        (b"", Place(0, True)),
    ],
)
def test_where_a_c_function_of_arm64_is_probed(code: bytes, expected: Place) -> None:
    assert aarch64.c_place(code) == expected


def test_where_calls_and_jumps_of_arm64_lead() -> None:
    assert list(aarch64.branch_targets(words(NOP, 0x94000010, B_BACK, CBZ_X0))) == [68, 4]
    assert list(aarch64.branch_targets(words(BL)[:3])) == []


def test_numbers_that_arm64_reads_of_its_argument() -> None:
    code = words(0xB9404801, 0xB9804802, 0xB9404821, 0xF9402401, 0xB9400401)
    # ldr w1, [x0, #72]; ldrsw x2, [x0, #72]; of x1; 64 bits; at 4
    assert list(aarch64.numbers_of_argument(code)) == [72, 72]


def test_a_machine_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    with pytest.raises(OSError, match="not possible on s390x"):
        arch.here()
