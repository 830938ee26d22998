"""Labels of files on hosts with SELinux; `restorecon` is a script that keeps its arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.plugins import plugin, run_program

RESTORECON = """#!/bin/sh
echo "$@" >>"$0.calls"
[ ! -e "$0.output" ] || cat "$0.output"
[ ! -e "$0.fails" ] || { echo "no policy" >&2; exit 255; }
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """restorecon of a host."""
    path = tmp_path / "restorecon"
    path.write_text(RESTORECON)
    path.chmod(0o755)
    return path


@pytest.fixture
def enforce(tmp_path: Path) -> Path:
    """A file as the kernel has it where SELinux is on."""
    path = tmp_path / "enforce"
    path.write_text("1")
    return path


selinux = plugin("module_utils.selinux")


def test_a_host_without_selinux_is_left_alone(tmp_path: Path, program: Path) -> None:
    missing = tmp_path / "missing"
    found = selinux.set_labels("/opt/x", run_program, on=missing, programs=(str(program),))
    assert found == (False, None)
    assert not Path(f"{program}.calls").exists()


@pytest.mark.parametrize(("check", "call"), [(False, "-R -v /opt/x"), (True, "-R -v -n /opt/x")])
def test_labels_are_set_or_asked_for(program: Path, enforce: Path, check: bool, call: str) -> None:
    programs = (str(program.with_name("other")), str(program))
    kinds = {"on": enforce, "programs": programs, "check": check}
    assert selinux.set_labels("/opt/x", run_program, **kinds) == (False, None)
    Path(f"{program}.output").write_text("Relabeled /opt/x/bin from a to b\n")
    assert selinux.set_labels("/opt/x", run_program, **kinds) == (True, None)
    assert Path(f"{program}.calls").read_text().splitlines() == [call, call]


def test_what_fails_is_said(tmp_path: Path, program: Path, enforce: Path) -> None:
    Path(f"{program}.fails").touch()
    _, problem = selinux.set_labels("/opt/x", run_program, on=enforce, programs=(str(program),))
    assert problem == "restorecon /opt/x: no policy"
    none = (str(tmp_path / "missing"),)
    _, problem = selinux.set_labels("/opt/x", run_program, on=enforce, programs=none)
    assert problem == "SELinux is on, and there is no restorecon: /opt/x keeps the labels it has"
