"""What a test needs of this kernel. A test that needs more than the kernel gives is skipped.

    needs.any_uprobes()  # returns the way that works here
    needs.write_user()
    needs.program("tl_sent")

Each asks by a trial, as the agent does, and the skip says the kernel's own words. The first two
load a program that does nothing else, so that a kernel that refuses is told from a program of ours
that is wrong.
"""

from __future__ import annotations

import json
import os
import struct
from functools import cache

import pytest

from tests.kernel.operated import Operated
from throughline.bpf import libbpf
from throughline.probes import uprobes

_KPROBE = 2  # enum bpf_prog_type


def any_uprobes() -> uprobes.Kind:
    """Uprobes: for the groups tls, go and go_write."""
    try:
        return uprobes.trial()
    except OSError as error:
        pytest.skip(f"this kernel refuses uprobes: {_words(error)}")


def write_user() -> None:
    """The helper bpf_probe_write_user: for the group go_write."""
    if reason := _write_user():
        pytest.skip(f"this kernel refuses bpf_probe_write_user: {reason}")


@cache
def _write_user() -> str:
    """The kernel's words, "" where it gives the helper. The program is loaded, and never runs."""
    code = b"".join(
        struct.pack("<BBhi", *instruction)
        for instruction in (
            (0xB7, 1, 0, 0),  # r1 = 0: where to
            (0xBF, 0xA2, 0, 0),  # r2 = r10
            (0x07, 2, 0, -8),  # r2 += -8: from where
            (0x62, 0x0A, -8, 0),  # *(u32 *)(r10 - 8) = 0
            (0xB7, 3, 0, 4),  # r3 = 4: how many bytes
            (0x85, 0, 0, 36),  # call bpf_probe_write_user
            (0xB7, 0, 0, 0),
            (0x95, 0, 0, 0),
        )
    )
    try:
        os.close(libbpf.load(code, kind=_KPROBE, name="tl_needs"))
    except OSError as error:
        return _words(error)
    return ""


def program(name: str) -> None:
    """A program of ours that its group can do without."""
    if reason := refused().get(name):
        pytest.skip(f"this kernel refuses {name}: {reason}")


@cache
def refused() -> dict[str, str]:
    """The programs that their groups do without here, and why, as `doctor` says."""
    with Operated({"propagation": {"peers": ["127.0.0.0/8"]}}, start=False) as host:
        said = host.command("doctor", "--json")
    groups = json.loads(said.stdout)["groups"].values()
    return {one["program"]: one["reason"] for group in groups for one in group.get("without", ())}


def _words(error: OSError) -> str:
    return error.strerror or str(error)
