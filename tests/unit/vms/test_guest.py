"""The command lines of a guest, and its exit status."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vms import guest, guestkernel
from tests.vms.guest import Guest
from tests.vms.guestkernel import Kernel

KERNEL = Kernel(Path("/kernels/vmlinuz"), Path("/kernels/initrd"), Path("/kernels/modules"))
STATE = Path("/state")
PLAIN = Guest(kernel="6.1", command=["true"], directory=Path("/home/me"))


def parse(*words: str) -> Guest:
    return guest.parse(words, directory=Path("/home/me"), path="/bin")


def test_a_command_keeps_its_own_options() -> None:
    found = parse("--kernel", "6.12", "--cpus", "1", "--", "pytest", "-x", "--", "--kernel", "5.10")
    assert found.command == ["pytest", "-x", "--", "--kernel", "5.10"]
    assert (found.kernel, found.cpus, found.lockdown) == ("6.12", 1, "none")


def test_the_environment_is_what_is_given() -> None:
    found = parse("--kernel", "6.1", "--env", "A=b=c", "--env", "PATH=/opt", "--", "env")
    assert found.environment == {"PATH": "/opt", "HOME": "/root", "LANG": "C.UTF-8", "A": "b=c"}


@pytest.mark.parametrize(
    "words",
    [
        ["--kernel", "6.1"],
        ["--", "true"],
        ["--kernel", "2.6", "--", "true"],
        ["--kernel", "6.1", "--env", "NAME", "--", "true"],
        ["--kernel", "6.1", "--lockdown", "some", "--", "true"],
    ],
)
def test_what_cannot_be_asked_for(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*words)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_the_command_runs_where_and_as_it_is_said(tmp_path: Path) -> None:
    directory = tmp_path / "it's here"
    directory.mkdir()
    program = "import os, sys; print(os.getcwd(), dict(os.environ), sys.argv[1:]); sys.exit(23)"
    wanted = Guest(
        kernel="6.1",
        command=[sys.executable, "-S", "-c", program, "a b", "$HOME", "'"],
        directory=directory,
        environment={"WORDS": "c  d;"},
    )
    answer = subprocess.run(
        ["/bin/sh"], input=guest.script(wanted), capture_output=True, text=True, check=False
    )
    assert answer.returncode == 23
    assert str(directory) in answer.stdout
    assert "'WORDS': 'c  d;'" in answer.stdout
    assert "'HOME'" not in answer.stdout
    assert answer.stdout.endswith("""['a b', '$HOME', "'"]\n""")


def test_a_directory_that_is_gone_fails() -> None:
    words = guest.script(replace(PLAIN, directory=Path("/nowhere")))
    answer = subprocess.run(["/bin/sh"], input=words, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "/nowhere" in answer.stderr


@pytest.mark.parametrize("lockdown", ["none", "integrity"])
def test_lockdown_is_a_word_for_the_kernel(lockdown: str) -> None:
    words = guest.cmdline(replace(PLAIN, lockdown=lockdown), KERNEL, state=STATE).split()
    assert [word for word in words if word.startswith("lockdown=")] == (
        [] if lockdown == "none" else ["lockdown=integrity"]
    )
    assert {"throughline.state=/state", "throughline.modules=/kernels/modules"} <= {*words}


def test_a_guest_has_no_network_device_and_shares_its_memory() -> None:
    words = guest.qemu(replace(PLAIN, memory=512, cpus=1), KERNEL, state=STATE)
    assert words[words.index("-nic") + 1] == "none"
    assert "-netdev" not in words
    assert words[words.index("-smp") + 1] == "1"
    assert "memory-backend-memfd,id=memory,size=512M,share=on" in words
    for name in ("console", "output", "status", "virtiofs"):
        assert any(word.endswith(f"path=/state/{name}") for word in words), name


def test_files_are_shared_by_a_process_that_cannot_write_them() -> None:
    words = guest.virtiofsd("/usr/libexec/virtiofsd", listener=23)
    assert words[:4] == ["unshare", "--mount", "--propagation", "private"]
    assert "remount,bind,ro" in guest.READ_ONLY
    after = words[words.index("/usr/libexec/virtiofsd") :]
    assert "--fd=23" in after and "source=/" in after


@pytest.mark.parametrize(
    ("status", "wanted"),
    [
        ("", None),
        ("up\n", None),
        ("up\nexit 0\n", 0),
        ("up\nexit 137\n", 137),
        ("up\nexit 13", None),
    ],
)
def test_exit_status(status: str, wanted: int | None) -> None:
    assert guest.exit_status(status) == wanted


def test_a_kernel_is_made_anew_when_its_init_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = guestkernel.path("6.12")
    changed = tmp_path / "init"
    changed.write_text("#!/bin/busybox sh\n")
    monkeypatch.setattr(guestkernel, "INIT", changed)
    assert guestkernel.path("6.12") != before
    assert guestkernel.path("6.12").name.startswith("6.12-")
    assert {"5.10", "6.1", "6.12", "newest"} == set(guestkernel.LINES)
