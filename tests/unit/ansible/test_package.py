"""A host with the package, or what a removal has left of it, is not for a playbook."""

from __future__ import annotations

from pathlib import Path

from tests.fixtures.plugins import plugin


def test_the_package_and_what_its_removal_leaves_are_refused(tmp_path: Path) -> None:
    base, rest = tmp_path / "opt", tmp_path / "throughline.postrm"
    refusal = plugin("module_utils.package").refusal
    assert refusal(base, rest) is None
    rest.touch()
    assert "Remedy: apt-get purge throughline" in refusal(base, rest)
    base.mkdir()
    (base / "PACKAGE").touch()
    assert refusal(base, rest).startswith("Found the package throughline on this host")
