"""The Go sources are as gofmt and go vet want them."""

from __future__ import annotations

import subprocess

import pytest

from tests.fixtures.go import toolchains
from tests.fixtures.go.build import SERVICES

MODULES = sorted(file.parent.name for file in SERVICES.glob("*/go.mod"))


def test_gofmt() -> None:
    gofmt = toolchains.toolchain(toolchains.NEWEST).with_name("gofmt")
    done = subprocess.run([gofmt, "-d", SERVICES], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("module", MODULES)
def test_vet(module: str) -> None:
    done = subprocess.run(
        [toolchains.toolchain(toolchains.NEWEST), "vet", "./..."],
        cwd=SERVICES / module,
        env=toolchains.environment(toolchains.NEWEST),
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
