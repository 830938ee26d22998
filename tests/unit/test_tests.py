"""The tests themselves: what they share is in tests/fixtures, and whatever stands there is used."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import LONGEST_FIRST
from tests.fixtures.paths import CHECKOUT, FIXTURES, SERVICES

TESTS = CHECKOUT / "tests"
# Folders of tests that are no folder of bpf/ or agent/throughline.
OTHER_FOLDERS = {"ansible", "bundle", "packages", "parents", "vms"}


@cache
def python_files() -> tuple[Path, ...]:
    return tuple(sorted([*TESTS.rglob("*.py"), *CHECKOUT.glob("molecule/**/*.py")]))


def is_test(path: Path) -> bool:
    return path.name.startswith("test_")


def imported(path: Path) -> set[str]:
    """Modules that a file imports, and names that may be modules."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return found


def module(path: Path) -> str:
    return ".".join(path.relative_to(CHECKOUT).with_suffix("").parts)


def mentioned(word: str, *, apart_from: Path) -> bool:
    """Whether another file of the tests, of Molecule or of the Makefile has a word."""
    pattern = re.compile(rf"(?<![\w-]){re.escape(word)}(?!\w)")
    others = [*python_files(), *CHECKOUT.glob("molecule/**/*.yml"), CHECKOUT / "Makefile"]
    return any(
        pattern.search(path.read_text(encoding="utf-8")) for path in others if path != apart_from
    )


def test_no_test_file_imports_another() -> None:
    tests = {module(path) for path in python_files() if is_test(path)}
    for path in python_files():
        assert not tests & imported(path), f"{path}: what two files need belongs to tests/fixtures"


def test_fixtures_know_no_folder_of_tests() -> None:
    for path in FIXTURES.rglob("*.py"):
        for name in imported(path):
            assert not name.startswith("tests.") or name.startswith("tests.fixtures"), path


def test_each_fixture_is_used() -> None:
    used = {name for path in python_files() for name in imported(path) if path.exists()}
    for path in FIXTURES.rglob("*.py"):
        if path.name != "__init__.py":
            by_name = mentioned(module(path), apart_from=path)
            assert module(path) in used or by_name, f"nothing uses {path}"
    for path in [*FIXTURES.glob("bpf/*"), *FIXTURES.glob("captured/*")]:
        assert mentioned(path.name, apart_from=path), f"nothing uses {path}"


def programs() -> list[Path]:
    """The services that are one file; tests/services/go and shop are folders."""
    found = (path for path in SERVICES.iterdir() if path.is_file())
    return sorted(path for path in found if path.name != "__init__.py")


@pytest.mark.parametrize("path", programs(), ids=lambda path: str(path.name))
def test_each_service_is_used_and_says_what_it_is(path: Path) -> None:
    assert mentioned(path.name, apart_from=path), "nothing starts it"
    first = path.read_text(encoding="utf-8").removeprefix("<?php\n").splitlines()[0]
    assert re.match(r'("""|// |# )\w.*[.:]', first), first


@pytest.mark.parametrize("path", sorted(SERVICES.glob("go/*/go.mod")), ids=lambda p: p.parent.name)
def test_each_go_service_is_used(path: Path) -> None:
    assert mentioned(path.parent.name, apart_from=path)


@pytest.mark.parametrize("kind", ["unit", "kernel"])
def test_folders_are_those_of_the_code(kind: str) -> None:
    """A reader finds the tests of bpf/evidence or of agent/throughline/probes by name."""
    code = {path.name for path in (CHECKOUT / "agent/throughline").rglob("*") if path.is_dir()}
    code |= {path.name for path in (CHECKOUT / "bpf").iterdir() if path.is_dir()}
    folders = {path.parent.name for path in (TESTS / kind).rglob("test_*.py")} - {kind}
    assert folders <= code | OTHER_FOLDERS


def test_the_longest_files_exist() -> None:
    for name in LONGEST_FIRST:
        assert (TESTS / name).is_file(), f"{name} has moved: tests/conftest.py names it"
