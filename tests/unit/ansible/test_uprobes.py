"""The capability that a kernel requires for uprobes."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from tests.fixtures.plugins import plugin


def test_the_kernel_says_itself_that_it_has_uprobe_multi(tmp_path: Path) -> None:
    need = plugin("module_utils.uprobes").need
    btf = tmp_path / "sys/kernel/btf/vmlinux"
    assert need(str(tmp_path)) is None
    btf.parent.mkdir(parents=True)
    btf.write_bytes(b"\0BPF_TRACE_KPROBE_MULTI\0")
    assert need(str(tmp_path)) is None  # nothing is tried on behalf of another tree
    btf.write_bytes(b"\0BPF_TRACE_KPROBE_MULTI\0BPF_TRACE_UPROBE_MULTI\0")
    assert need(str(tmp_path)) == "multi"


@pytest.mark.parametrize(
    ("with_all", "without", "need"),
    [
        (None, None, "perf"),
        (None, errno.EACCES, "admin"),
        (None, errno.EPERM, "admin"),
        (None, errno.ENOTSUP, None),  # CAP_SYS_ADMIN could not be given up
        (errno.EPERM, errno.EPERM, None),  # refused by something else
        (errno.ENOENT, errno.ENOENT, None),  # no uprobes at all
    ],
)
def test_whether_uprobes_ask_for_sys_admin_is_tried(
    monkeypatch: pytest.MonkeyPatch, with_all: int | None, without: int | None, need: str | None
) -> None:
    module = plugin("module_utils.uprobes")
    monkeypatch.setattr(module, "MULTI", b"\0no kernel has this\0")
    monkeypatch.setattr(module, "has_sys_admin", lambda root: True)
    monkeypatch.setattr(module, "attempt", lambda: with_all)
    monkeypatch.setattr(module, "attempt_without_sys_admin", lambda: without)
    assert module.need("/") == need


def test_only_capabilities_that_are_there_are_kept_for_the_trial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in a container without CAP_LEASE, which has CAP_SYS_ADMIN and CAP_BPF."""
    module = plugin("module_utils.uprobes")
    status = tmp_path / "proc/self/status"
    status.parent.mkdir(parents=True)
    status.write_text("CapPrm:\t0000008000200000\nCapEff:\t0000000000200000\n")
    assert module.has_sys_admin(str(tmp_path))
    asked: list[tuple[int, ...]] = []

    class Libc:
        @staticmethod
        def capset(_header: object, sets: bytes) -> int:
            asked.append(struct.unpack("<6I", bytes(sets)[:24]))
            return 0

    read = module.read_text
    monkeypatch.setattr(module, "read_text", lambda root, path: read(str(tmp_path), path))
    monkeypatch.setattr(module.ctypes, "CDLL", lambda *_, **__: Libc)
    monkeypatch.setattr(module, "attempt", lambda: errno.EACCES)
    assert module.attempt_without_sys_admin() == errno.EACCES
    assert asked == [(0, 0, 0, 1 << 39 - 32, 1 << 39 - 32, 0)]
