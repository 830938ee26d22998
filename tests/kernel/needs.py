"""What a test needs of this kernel. A test that needs more than the kernel gives is skipped.

    needs.any_uprobes()  # returns the way that works here
    needs.write_user()

Each asks by a trial, with a program of its own that does nothing else, as the agent does. So a
kernel that refuses is told from programs of ours that are wrong, for which a test still fails; and
the skip says the kernel's own words.
"""

from __future__ import annotations

import os
import struct
from functools import cache

import pytest

from throughline.kernel import libbpf, uprobes

_KPROBE = 2  # enum bpf_prog_type


def any_uprobes() -> uprobes.Kind:
    """Uprobes: for the groups tls, go and go_write."""
    try:
        return uprobes.trial()
    except OSError as error:
        pytest.skip(f"this kernel refuses uprobes: {_words(error)}")


def write_user() -> None:
    """The helper bpf_probe_write_user: for the group go_write."""
    refused = _write_user()
    if refused:
        pytest.skip(f"this kernel refuses bpf_probe_write_user: {refused}")


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


def _words(error: OSError) -> str:
    return error.strerror or str(error)
