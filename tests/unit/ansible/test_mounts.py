"""Mount points, and the units that mount file systems."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fixtures.plugins import plugin, run_program


def test_mount_points_are_unescaped(tmp_path: Path) -> None:
    path = tmp_path / "proc/self/mountinfo"
    path.parent.mkdir(parents=True)
    path.write_text("1 2 0:3 / /mnt/a\\040b rw - bpf bpf rw\n", encoding="utf-8")
    assert plugin("module_utils.host").read_mounts(str(tmp_path)) == [("/mnt/a b", "bpf")]


@pytest.mark.parametrize("path", ["/run/throughline-bpf", "/run/a b/ü", "/run/.x"])
def test_mount_units_have_the_name_that_systemd_wants(path: str) -> None:
    if shutil.which("systemd-escape") is None:
        pytest.skip("systemd-escape is not installed")
    wanted = run_program(["systemd-escape", "--path", "--suffix=mount", path])[1].strip()
    assert plugin("modules.throughline_mount").unit_name(path, "bpf") == wanted
