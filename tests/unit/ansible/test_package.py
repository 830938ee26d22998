"""A host with the package, or what a removal has left of it, is not for a playbook."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.paths import CHECKOUT
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


@pytest.mark.parametrize(("installs", "code"), [("true", 2), ("false", 0)])
def test_preflight_refuses_such_a_host_before_a_role_writes(
    tmp_path: Path, installs: str, code: int
) -> None:
    (tmp_path / "opt/throughline").mkdir(parents=True)
    (tmp_path / "opt/throughline/PACKAGE").touch()
    module = ["-m", "throughline.fleet.throughline_preflight"]
    program = Path(sys.executable).with_name("ansible")
    done = subprocess.run(
        [
            program,
            "localhost",
            "-c",
            "local",
            *module,
            "-a",
            f"root={tmp_path} installs={installs}",
        ],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stdout
    assert ("Found the package throughline on this host" in done.stdout) == (code != 0)
