"""Folders of bpf/: includes run from the lower folders to the upper ones, and files stay small."""

from __future__ import annotations

import re
from pathlib import Path

from tests.fixtures.folders import FOLDERS

ROOT = Path(__file__).parents[3]
BPF = ROOT / "bpf"
MAX_LINES = 500


def sources() -> list[Path]:
    return sorted(path for path in BPF.rglob("*") if path.suffix in (".c", ".h"))


def included(path: Path) -> list[str]:
    """The files that a source includes by their names in quotes."""
    return re.findall(r'^#include "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_source_is_in_a_folder() -> None:
    for path in sources():
        assert path.relative_to(BPF).parts[:-1] in {(folder,) for folder in FOLDERS}, path


def test_includes_run_one_way() -> None:
    for path in sources():
        known = FOLDERS[: FOLDERS.index(path.parent.name) + 1]
        for name in included(path):
            if name == "vmlinux.h":  # generated, from the kernel's BTF
                continue
            assert (BPF / name).is_file(), f"{path} includes {name}"
            assert name.partition("/")[0] in known, f"{path} includes {name}"


def test_no_file_includes_itself_through_others() -> None:
    after: dict[str, set[str]] = {}

    def follow(name: str, through: tuple[str, ...]) -> None:
        assert name not in through, " includes ".join((*through, name))
        if name in after:
            return
        for other in included(BPF / name):
            if other != "vmlinux.h":
                follow(other, (*through, name))
        after[name] = set()

    for path in sources():
        follow(path.relative_to(BPF).as_posix(), ())


def test_files_stay_small() -> None:
    for path in sources():
        name = path.relative_to(BPF).as_posix()
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_LINES, f"{name}: {lines} lines"


def test_pages_and_files_that_comments_name_exist() -> None:
    """`docs/….md` from the root, `folder/file.h` from bpf/."""
    for path in sources():
        text = path.read_text(encoding="utf-8")
        for page in re.findall(r"docs/[\w/-]+\.md", text):
            assert (ROOT / page).is_file(), f"{path} names {page}"
        for name in re.findall(rf"\b(?:{'|'.join(FOLDERS)})/\w+\.(?:bpf\.)?[ch]\b", text):
            assert (BPF / name).is_file(), f"{path} names {name}"


def test_few_functions_follow_pointers_of_tasks() -> None:
    """The verifier searches all types of the kernel for each: see core/process.h.

    A new place has to be a global function, or the verifier takes 2 ms for each time it walks it.
    """
    pointer = r"(?:TL_READ\(.*?\b|->)(?:cgroups|files|group_leader|mm|signal)\b"
    found = {
        name: count
        for path in sources()
        if (count := len(re.findall(pointer, path.read_text(encoding="utf-8"))))
        for name in [path.relative_to(BPF).as_posix()]
    }
    assert found == {
        "core/process.h": 4,
        "evidence/trust.h": 3,
        "runtimes/descriptor.h": 1,
        "runtimes/job.h": 2,
        "runtimes/proxies.bpf.c": 1,
        "runtimes/python.bpf.c": 1,
        "runtimes/runtime.h": 3,
    }
