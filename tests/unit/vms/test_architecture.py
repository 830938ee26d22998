"""Programs of another architecture on this machine, without running any."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.vms import architecture


@pytest.fixture
def binfmt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A binfmt_misc that is mounted."""
    (tmp_path / "register").touch()
    monkeypatch.setattr(architecture, "BINFMT", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return tmp_path


def test_programs_of_this_machine_need_nothing(binfmt: Path) -> None:
    (binfmt / "register").unlink()
    with architecture.programs_run(architecture.NATIVE):
        pass


def test_an_emulator_is_registered_only_while_the_block_runs(binfmt: Path) -> None:
    entry = binfmt / "throughline-aarch64"
    with architecture.programs_run("aarch64"):
        rule = (binfmt / "register").read_text()
        assert rule.startswith(r":throughline-aarch64:M::\x7fELF")
        assert rule.endswith(":/usr/bin/qemu-aarch64-static:F")
        entry.write_text("enabled\n")
    assert entry.read_text() == "-1"


def test_a_machine_that_has_an_emulator_stays_as_it_is(binfmt: Path) -> None:
    (binfmt / "qemu-aarch64").write_text("enabled\n")
    with architecture.programs_run("aarch64"):
        assert (binfmt / "register").read_text() == ""
    assert (binfmt / "qemu-aarch64").read_text() == "enabled\n"


def test_a_missing_emulator_is_named(binfmt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with (
        pytest.raises(FileNotFoundError, match="qemu-aarch64-static"),
        architecture.programs_run("aarch64"),
    ):
        pass
