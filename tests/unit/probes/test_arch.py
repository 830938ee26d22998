"""Which instruction of a function is probed."""

from __future__ import annotations

import platform

import pytest

from tests.fixtures.elffile import ENDBR64, JE, PUSH, SUB, TEST_RDI
from tests.fixtures.gofile import CHECK, JBE, SMALL
from throughline.probes import arch
from throughline.probes.arch import Place, x86_64


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


def test_a_machine_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    with pytest.raises(OSError, match="not possible on s390x"):
        arch.here()
