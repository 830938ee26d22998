"""What a program lacks, and what the processor does."""

from __future__ import annotations

import pytest

from throughline.probes.arch import aarch64, x86_64
from throughline.runtimes.go import coverage
from throughline.runtimes.go.wanted import FEATURES

FRAMES = {"http2_write", "x_http2_write", "grpc_write"}


@pytest.mark.parametrize(
    ("registers", "lost"), [(x86_64.GO_REGISTERS, set()), (aarch64.GO_REGISTERS, FRAMES)]
)
def test_a_frame_in_registers_is_not_changed(registers: int, lost: set[str]) -> None:
    """A program with all that any feature needs."""
    functions = {
        name for each in FEATURES for group in (*each.functions, *each.shared) for name in group
    }
    offsets = {group[0] for each in FEATURES for group in each.offsets}
    types = {group[0] for each in FEATURES for group in each.types}
    missing = coverage.missing(functions, {}, offsets, types, {}, registers=registers)
    assert missing.keys() == lost
    assert all("in registers" in reason for reason in missing.values())
